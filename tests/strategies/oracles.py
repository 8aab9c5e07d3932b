"""Every strategy in float64, written from the formulas alone: slow and plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Members = Sequence[np.ndarray]
Weights = Sequence[float]


# --- small helpers ---------------------------------------------------------------------------


def f64(array: Array) -> Array:
    """The array in float64."""
    return np.asarray(array, dtype=np.float64)


def need(condition: bool, message: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)


def need_base(base: Array | None) -> Array:
    """The base in float64; an error where there is none."""
    if base is None:
        raise ValueError("this strategy needs a base")
    return f64(base)


def deltas_of(members: Members, base: Array | None) -> list[Array]:
    """Every d_i = W_i - B in float64."""
    origin = need_base(base)
    return [f64(f64(member) - origin) for member in members]


def vectors_of(members: Members, base: Array | None) -> list[Array]:
    """Every V_i: d_i if there is a base, else W_i."""
    return [f64(m) for m in members] if base is None else deltas_of(members, base)


def selection_delta(member: Array, base: Array) -> Array:
    """The delta whose magnitudes are compared: float32, or float64 for a float64 member."""
    kind = np.float64 if np.asarray(member).dtype == np.float64 else np.float32
    return np.asarray(np.asarray(member, dtype=kind) - np.asarray(base, dtype=kind), dtype=kind)


def selection_deltas(members: Members, base: Array | None) -> list[Array]:
    """The selection delta of every member."""
    if base is None:
        raise ValueError("this strategy needs a base")
    return [selection_delta(member, base) for member in members]


def total(arrays: Sequence[Array]) -> Array:
    """The sum of the arrays, first to last."""
    result = np.zeros(np.shape(arrays[0]))
    for array in arrays:
        result = result + array
    return f64(result)


def weighted(weights: Weights, arrays: Sequence[Array]) -> list[Array]:
    """Every array times its weight."""
    return [f64(w * a) for w, a in zip(weights, arrays, strict=True)]


def weight_sum(weights: Weights) -> float:
    """The sum of the weights, which must not be 0."""
    result = float(sum(weights))
    need(result != 0.0, "the weights sum to 0")
    return result


def norm(vector: Array) -> float:
    """The Euclidean norm of the whole array taken as one vector."""
    return math.sqrt(float(np.sum(f64(vector) ** 2)))


def dot(a: Array, b: Array) -> float:
    """The inner product of two arrays taken as vectors."""
    return float(np.sum(f64(a) * f64(b)))


def unit(vector: Array) -> Array:
    """The array divided by its norm; zeros if the norm is 0."""
    length = norm(vector)
    return f64(vector) / length if length > 0.0 else np.zeros(np.shape(vector))


def as_rows(array: Array) -> Array:
    """A view of the array as a matrix whose rows are the vectors along its last axis."""
    shape = np.shape(array)
    if len(shape) == 0:
        return np.reshape(array, (1, 1))
    return np.reshape(array, (math.prod(shape[:-1]), shape[-1]))


def is_matrix(array: Array) -> bool:
    """Whether the array is 2-D with both sides above 0."""
    return np.ndim(array) == 2 and np.size(array) > 0


def order(values: Array) -> Array:
    """Flat indexes from the largest magnitude to the smallest; of equals the lower index first."""
    flat = np.abs(np.asarray(values)).reshape(-1)
    return np.argsort(-flat, kind="stable")


def largest(values: Array, k: int) -> Array:
    """The boolean mask of exactly the k elements of largest magnitude."""
    mask = np.zeros(np.size(values), dtype=bool)
    mask[order(values)[:k]] = True
    return mask.reshape(np.shape(values))


def smallest(values: Array, k: int) -> Array:
    """The boolean mask of exactly the k elements of smallest magnitude."""
    return np.asarray(~largest(values, np.size(values) - k))


def kept(delta: Array, mask: Array) -> Array:
    """The delta with every element outside the mask set to 0."""
    return f64(np.where(mask, delta, 0.0))


def l1_rescaled(before: Array, after: Array) -> Array:
    """The masked delta stretched to the sum of magnitudes it had before."""
    sum_before, sum_after = float(np.sum(np.abs(before))), float(np.sum(np.abs(after)))
    return f64(after * (sum_before / sum_after)) if sum_after > 0.0 else after


def combined(deltas: Sequence[Array], weights: Weights, normalize: bool) -> Array:
    """The sum of w_i d_i, divided by the sum of the weights if asked."""
    result = total(weighted(weights, deltas))
    return f64(result / weight_sum(weights)) if normalize else result


def agreement(values: Sequence[Array]) -> list[Array]:
    """For every member the mask of the elements where it is not 0 and has the elected sign."""
    positive = total(values) >= 0.0
    return [np.where(positive, value > 0.0, value < 0.0) for value in values]


def elected(deltas: Sequence[Array], weights: Weights, elect: str, divide: str) -> Array:
    """The sum of w_i d_i over the agreeing members, divided as asked."""
    need(elect in ("weighted", "unweighted"), "elect is weighted or unweighted")
    need(divide in ("weights", "count", "none"), "divide is weights, count or none")
    terms = weighted(weights, deltas)
    agree = agreement(terms if elect == "weighted" else deltas)
    result = total([kept(term, mask) for term, mask in zip(terms, agree, strict=True)])
    if divide == "none":
        return result
    shares = weights if divide == "weights" else [1.0] * len(deltas)
    divisor = total([np.where(mask, w, 0.0) for w, mask in zip(shares, agree, strict=True)])
    return f64(result / np.where(divisor == 0.0, 1.0, divisor))


def angle(a: Array, b: Array) -> float:
    """The angle of two vectors of nonzero norm, accurate near 0 and pi too."""
    u, v = unit(a), unit(b)
    return 2.0 * math.atan2(norm(u - v), norm(u + v))


def line(t: float, a: Array, b: Array) -> Array:
    """The point at t of the straight line from a to b."""
    return f64((1.0 - t) * a + t * b)


def arc(t: float, theta: float, a: Array, b: Array) -> Array:
    """The slerp formula at t for the angle theta."""
    first, second = math.sin((1.0 - t) * theta), math.sin(t * theta)
    return f64((first * a + second * b) / math.sin(theta))


# --- averages on W ---------------------------------------------------------------------------


def linear(
    members: Members, weights: Weights, base: Array | None, *, normalize: bool = True, **_: object
) -> Array:
    """The weighted sum of the members, divided by the sum of the weights if asked."""
    return combined([f64(m) for m in members], weights, normalize)


def passthrough(
    members: Members, weights: Weights, base: Array | None, *, scale: float = 1.0, **_: object
) -> Array:
    """The one member times the scale."""
    need(len(members) == 1, "passthrough takes exactly 1 member")
    return f64(scale * f64(members[0]))


def median(members: Members, weights: Weights, base: Array | None, **_: object) -> Array:
    """Per element the median of the members."""
    ranked = np.sort(np.stack([f64(m) for m in members]), axis=0)
    count = len(members)
    low, high = ranked[(count - 1) // 2], ranked[count // 2]
    return f64(low) if count % 2 == 1 else f64((low + high) / 2.0)


# --- spheres ---------------------------------------------------------------------------------


def slerp(
    members: Members, weights: Weights, base: Array | None, *, t: float | None = None, **_: object
) -> Array:
    """Spherical interpolation of two members, a straight line where they are nearly parallel."""
    need(len(members) == 2, "slerp takes exactly 2 members")
    first, second = f64(members[0]), f64(members[1])
    at = float(weights[1]) / weight_sum(weights) if t is None else float(t)
    if at in (0.0, 1.0) or norm(first) == 0.0 or norm(second) == 0.0:
        return line(at, first, second)
    if abs(dot(unit(first), unit(second))) > 0.9995:
        return line(at, first, second)
    return arc(at, angle(first, second), first, second)


def nuslerp_vector(t: float, a: Array, b: Array) -> Array:
    """The slerp formula on one pair of vectors, without normalising them."""
    if norm(a) == 0.0 or norm(b) == 0.0:
        return line(t, a, b)
    theta = angle(a, b)
    return line(t, a, b) if math.sin(theta) ** 2 <= 1e-16 else arc(t, theta, a, b)


def nuslerp_rows(t: float, a: Array, b: Array) -> Array:
    """The slerp formula on every vector along the last axis by itself."""
    pairs = zip(as_rows(a), as_rows(b), strict=True)
    result = np.zeros(np.shape(as_rows(a)))
    for index, (row_a, row_b) in enumerate(pairs):
        result[index] = nuslerp_vector(t, row_a, row_b)
    return result.reshape(np.shape(a))


def nuslerp(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    flatten: bool = True,
    row_wise: bool = False,
    **_: object,
) -> Array:
    """Spherical interpolation of two members or deltas, whole or vector by vector."""
    need(len(members) == 2, "nuslerp takes exactly 2 members")
    both = float(weights[0]) + float(weights[1])
    t = 0.5 if abs(both) < 1e-6 else float(weights[1]) / both
    first, second = vectors_of(members, base)
    if flatten:
        result = nuslerp_vector(t, first, second)
    elif row_wise and first.ndim > 0:
        turned = nuslerp_rows(t, np.moveaxis(first, 0, -1), np.moveaxis(second, 0, -1))
        result = np.moveaxis(turned, -1, 0)
    else:
        result = nuslerp_rows(t, first, second)
    return f64(result if base is None else result + f64(base))


def exponential_map(point: Array, tangent: Array, eps: float) -> Array:
    """The point of the unit sphere reached from another along a tangent vector."""
    length = norm(tangent)
    if length < eps or length == 0.0:
        return point
    return f64(math.cos(length) * point + math.sin(length) * (tangent / length))


def multislerp_vectors(vectors: list[Array], shares: Weights, eps: float) -> Array:
    """The multislerp of vectors whose weights are settled."""
    units = [unit(v) for v in vectors]
    middle = total(weighted(shares, units))
    if norm(middle) < eps or norm(middle) == 0.0:
        need(len(vectors) == 2 or middle.size == 0, "the directions cancel")
        return total(weighted(shares, vectors))
    m = unit(middle)
    tangent = total(weighted(shares, [u - dot(u, m) * m for u in units]))
    length = sum(a * norm(v) for a, v in zip(shares, vectors, strict=True))
    return f64(exponential_map(m, tangent, eps) * length)


def multislerp(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    normalize_weights: bool = True,
    eps: float = 1e-8,
    **_: object,
) -> Array:
    """One step on the sphere from the normalised mean of the directions."""
    need(len(members) >= 2, "multislerp takes at least 2 members")
    divisor = weight_sum(weights) if normalize_weights else 1.0
    shares = [w / divisor for w in weights]
    result = multislerp_vectors(vectors_of(members, base), shares, eps)
    return f64(result if base is None else result + f64(base))


def sphere_log(u: Array, m: Array) -> Array:
    """The tangent vector at m that leads to u; zeros where sin(theta) is below 1e-12."""
    cos_theta = min(1.0, max(-1.0, dot(u, m)))
    tangent = u - cos_theta * m
    sine = norm(tangent)
    if sine < 1e-12:
        return np.zeros(np.shape(u))
    return f64(math.atan2(sine, cos_theta) / sine * tangent)


def karcher_mean(units: list[Array], shares: list[float], max_iter: int, tol: float) -> Array:
    """The weighted Karcher mean of unit vectors."""
    m = total(weighted(shares, units))
    m = units[0] if norm(m) < 1e-12 else unit(m)
    for _ in range(max_iter):
        tangent = total(weighted(shares, [sphere_log(u, m) for u in units]))
        if norm(tangent) < tol:
            break
        m = unit(exponential_map(m, tangent, 0.0))
    return m


def karcher(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    **_: object,
) -> Array:
    """The Karcher mean of the directions times the weighted mean of the norms."""
    pairs = zip(weights, (f64(m) for m in members), strict=True)
    rest = [(w, v) for w, v in pairs if w != 0.0 and norm(v) > 0.0]
    if not rest:
        return np.zeros(np.shape(members[0]))
    divisor = weight_sum([w for w, _v in rest])
    shares = [w / divisor for w, _v in rest]
    mean = karcher_mean([unit(v) for _w, v in rest], shares, max_iter, tol)
    return f64(mean * sum(a * norm(v) for a, (_w, v) in zip(shares, rest, strict=True)))


# --- task vectors ----------------------------------------------------------------------------


def task_arithmetic(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    **_: object,
) -> Array:
    """The base plus the weighted sum of the deltas."""
    return f64(need_base(base) + scale * combined(deltas_of(members, base), weights, normalize))


def ties_mask(selection: Array, density: float) -> Array:
    """The mask of the max(1, floor(density * n)) largest elements."""
    return largest(selection, max(1, math.floor(density * np.size(selection))))


def ties(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    scale: float = 1.0,
    **_: object,
) -> Array:
    """Trim, elect a sign, and merge the members that agree."""
    masks = [ties_mask(s, density) for s in selection_deltas(members, base)]
    trimmed = [kept(d, m) for d, m in zip(deltas_of(members, base), masks, strict=True)]
    return f64(need_base(base) + scale * elected(trimmed, weights, elect, divide))


def dare_rescaled(delta: Array, mask: Array, density: float, rescale: str) -> Array:
    """One delta masked and rescaled as dare does."""
    need(rescale in ("inverse_density", "l1", "none"), "rescale is inverse_density, l1 or none")
    after = kept(delta, mask)
    if rescale == "l1":
        return l1_rescaled(delta, after)
    return f64(after / density) if rescale == "inverse_density" and np.any(mask) else after


def dare_deltas(
    members: Members, base: Array | None, density: float, rescale: str, masks: Members | None
) -> list[Array]:
    """Every delta masked and rescaled as dare does."""
    deltas = deltas_of(members, base)
    if masks is None:
        need(density == 1.0, "a density below 1 needs masks")
        masks = [np.ones(d.shape, dtype=bool) for d in deltas]
    return [dare_rescaled(d, m, density, rescale) for d, m in zip(deltas, masks, strict=True)]


def dare_linear(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 1.0,
    rescale: str = "inverse_density",
    scale: float = 1.0,
    normalize: bool = False,
    masks: Members | None = None,
    **_: object,
) -> Array:
    """The base plus the weighted sum of the randomly masked deltas."""
    changed = dare_deltas(members, base, density, rescale, masks)
    return f64(need_base(base) + scale * combined(changed, weights, normalize))


def dare_ties(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 1.0,
    rescale: str = "inverse_density",
    scale: float = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    masks: Members | None = None,
    **_: object,
) -> Array:
    """The randomly masked deltas, merged by an elected sign."""
    changed = dare_deltas(members, base, density, rescale, masks)
    return f64(need_base(base) + scale * elected(changed, weights, elect, divide))


def della_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """The keep probability of every element, by its rank within its row."""
    need(density - epsilon > 0.0 and density + epsilon < 1.0, "density +- epsilon leaves (0, 1)")
    rows = as_rows(delta)
    count = rows.shape[1]
    result = np.full(rows.shape, float(density))
    for index, row in enumerate(rows):
        for place, element in enumerate(order(row)):
            rank = count - 1 - place
            if count > 1:
                result[index, element] = density - epsilon + 2.0 * epsilon * rank / (count - 1)
    return result.reshape(np.shape(delta))


def della_rescaled(delta: Array, mask: Array, p: Array, rescale: str) -> Array:
    """One delta masked and rescaled as della does."""
    need(rescale in ("inverse_p", "l1", "none"), "rescale is inverse_p, l1 or none")
    after = kept(delta, mask)
    if rescale == "l1":
        return l1_rescaled(delta, after)
    return f64(after / p) if rescale == "inverse_p" else after


def della_deltas(
    members: Members,
    base: Array | None,
    density: float,
    epsilon: float,
    rescale: str,
    masks: Members | None,
) -> list[Array]:
    """Every delta masked and rescaled as della does."""
    if masks is None:
        raise ValueError("della needs masks")
    chances = [della_probabilities(s, density, epsilon) for s in selection_deltas(members, base)]
    parts = zip(deltas_of(members, base), masks, chances, strict=True)
    return [della_rescaled(d, m, p, rescale) for d, m, p in parts]


def della_linear(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 0.5,
    epsilon: float = 0.15,
    rescale: str = "inverse_p",
    scale: float = 1.0,
    normalize: bool = False,
    masks: Members | None = None,
    **_: object,
) -> Array:
    """The base plus the weighted sum of the deltas masked by rank."""
    changed = della_deltas(members, base, density, epsilon, rescale, masks)
    return f64(need_base(base) + scale * combined(changed, weights, normalize))


def della(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 0.5,
    epsilon: float = 0.15,
    rescale: str = "inverse_p",
    scale: float = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    masks: Members | None = None,
    **_: object,
) -> Array:
    """The deltas masked by rank, merged by an elected sign."""
    changed = della_deltas(members, base, density, epsilon, rescale, masks)
    return f64(need_base(base) + scale * elected(changed, weights, elect, divide))


def breadcrumbs_mask(selection: Array, density: float, gamma: float) -> Array:
    """The mask of what is left after the largest outliers and the smallest elements go."""
    count = np.size(selection)
    top = math.floor(gamma * count)
    low = max(0, count - math.floor(density * count) - top)
    return np.asarray(~largest(selection, top) & ~smallest(selection, low))


def breadcrumbs_deltas(
    members: Members, base: Array | None, density: float, gamma: float, rescale: str
) -> list[Array]:
    """Every delta without its largest and smallest elements, rescaled."""
    need(rescale in ("none", "l1"), "rescale is none or l1")
    deltas = deltas_of(members, base)
    masks = [breadcrumbs_mask(s, density, gamma) for s in selection_deltas(members, base)]
    after = [kept(d, m) for d, m in zip(deltas, masks, strict=True)]
    if rescale == "none":
        return after
    return [l1_rescaled(d, a) for d, a in zip(deltas, after, strict=True)]


def breadcrumbs(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 1.0,
    gamma: float = 0.01,
    rescale: str = "none",
    scale: float = 1.0,
    normalize: bool = False,
    **_: object,
) -> Array:
    """The base plus the weighted sum of the deltas without their extremes."""
    changed = breadcrumbs_deltas(members, base, density, gamma, rescale)
    return f64(need_base(base) + scale * combined(changed, weights, normalize))


def breadcrumbs_ties(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    density: float = 1.0,
    gamma: float = 0.01,
    rescale: str = "none",
    scale: float = 1.0,
    elect: str = "weighted",
    divide: str = "weights",
    **_: object,
) -> Array:
    """The deltas without their extremes, merged by an elected sign."""
    changed = breadcrumbs_deltas(members, base, density, gamma, rescale)
    return f64(need_base(base) + scale * elected(changed, weights, elect, divide))


# --- geometry and statistics of deltas -------------------------------------------------------


def cosine(a: Array, b: Array) -> float:
    """The cosine of two vectors, 0 if a norm is 0."""
    return dot(unit(a), unit(b))


def stock_ratio(deltas: Sequence[Array]) -> float:
    """Model stock's t for one set of vectors."""
    count = len(deltas)
    cosines = [cosine(deltas[i], deltas[j]) for j in range(count) for i in range(j)]
    c = sum(cosines) / len(cosines)
    denominator = 1.0 + (count - 1) * c
    return 0.0 if abs(denominator) < 1e-12 else count * c / denominator


def model_stock(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    filter_wise: bool = False,
    **_: object,
) -> Array:
    """A point between the base and the mean of the members, by how the deltas are aligned."""
    need(len(members) >= 2, "model_stock takes at least 2 members")
    origin, deltas = need_base(base), deltas_of(members, base)
    mean = total([f64(m) for m in members]) / len(members)
    if not filter_wise:
        return line(stock_ratio(deltas), origin, mean)
    parts = [as_rows(d) for d in deltas]
    count = parts[0].shape[0]
    ratios = [stock_ratio([p[row] for p in parts]) for row in range(count)]
    t = np.reshape(np.array(ratios, dtype=np.float64), (count, 1))
    result = t * as_rows(mean) + (1.0 - t) * as_rows(origin)
    return f64(result).reshape(origin.shape)


@np.errstate(under="ignore")
def sce_variance(selection: Sequence[Array]) -> Array:
    """The population variance in the selection's own precision; exactly 0 where all are equal."""
    stack = np.stack(list(selection))
    mean = np.sum(stack, axis=0, dtype=stack.dtype) / stack.dtype.type(len(stack))
    squares = (stack - mean) ** 2
    variance = np.sum(squares, axis=0, dtype=stack.dtype) / stack.dtype.type(len(stack))
    return np.asarray(np.where(np.all(stack == stack[0], axis=0), 0.0, variance), stack.dtype)


def sce_mask(selection: Sequence[Array], select_topk: float) -> Array:
    """The mask of the elements whose variance over the members is largest."""
    variance = sce_variance(selection)
    if select_topk >= 1.0:
        return np.ones(variance.shape, dtype=bool)
    return largest(variance, max(1, math.floor(select_topk * int(np.sum(variance > 0.0)))))


@np.errstate(under="ignore")
def sce(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    select_topk: float = 1.0,
    **_: object,
) -> Array:
    """Select by variance, weigh by energy, erase what disagrees with the elected sign."""
    need(len(members) >= 2, "sce takes at least 2 members")
    mask = sce_mask(selection_deltas(members, base), select_topk)
    deltas = [kept(d, mask) for d in deltas_of(members, base)]
    energy = [float(np.sum(d**2)) for d in deltas]
    whole = sum(energy)
    shares = [q / whole if whole > 0.0 else 1.0 / len(deltas) for q in energy]
    return f64(need_base(base) + elected(deltas, shares, "unweighted", "weights"))


def ram(
    members: Members, weights: Weights, base: Array | None, *, epsilon: float = 1e-5, **_: object
) -> Array:
    """Per element the mean of the deltas of the members that changed it."""
    deltas = deltas_of(members, base)
    changed = [np.abs(d) > epsilon for d in deltas]
    number = total([f64(c) for c in changed])
    result = total([kept(d, c) for d, c in zip(deltas, changed, strict=True)])
    return f64(need_base(base) + result / np.maximum(number, 1.0))


def ramplus_factor(mine: Array, number: Array, r: float, alpha: float) -> float:
    """What one member's unique elements are multiplied by."""
    unique = int(np.sum(mine & (number == 1.0)))
    shared = int(np.sum(mine & (number > 1.0)))
    return 1.0 + r * min(max(shared / unique, 0.0), alpha) if unique > 0 else 1.0


def ramplus_tl(
    members: Members,
    weights: Weights,
    base: Array | None,
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
    **_: object,
) -> Array:
    """As ram, with the elements that only one member changed made larger."""
    deltas = deltas_of(members, base)
    changed = [np.abs(d) > epsilon for d in deltas]
    number = total([f64(c) for c in changed])
    result = total([kept(d, c) for d, c in zip(deltas, changed, strict=True)])
    result = result / np.maximum(number, 1.0)
    for delta, mine in zip(deltas, changed, strict=True):
        factor = ramplus_factor(mine, number, r, alpha)
        result = np.where(mine & (number == 1.0), delta * factor, result)
    return f64(need_base(base) + result)


def nearswap(
    members: Members, weights: Weights, base: Array | None, *, t: float, **_: object
) -> Array:
    """The member where it is near the base, ever less of it where it is far."""
    need(len(members) == 1, "nearswap takes exactly 1 member")
    member, origin = f64(members[0]), need_base(base)
    s = np.clip(t / np.maximum(np.abs(member - origin), 1e-6), 0.0, 1.0)
    return f64(s * member + (1.0 - s) * origin)


def log_softmax(row: Array) -> Array:
    """The logarithm of the softmax of one row."""
    shifted = row - np.max(row)
    return f64(shifted - math.log(float(np.sum(np.exp(shifted)))))


def divergence(row: Array, origin: Array) -> float:
    """The Kullback-Leibler divergence of the softmax of one row from that of another."""
    log_p, log_q = log_softmax(row), log_softmax(origin)
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def quantile(values: Array, q: float) -> float:
    """The quantile by linear interpolation."""
    ranked = np.sort(f64(values).reshape(-1))
    place = q * (ranked.size - 1)
    low = math.floor(place)
    high = min(low + 1, ranked.size - 1)
    return float(ranked[low] + (place - low) * (ranked[high] - ranked[low]))


@np.errstate(under="ignore")
def arcee_fusion(members: Members, weights: Weights, base: Array | None, **_: object) -> Array:
    """The member's value where the change is important, the base's elsewhere."""
    need(len(members) == 1, "arcee_fusion takes exactly 1 member")
    member, origin = f64(members[0]), need_base(base)
    if member.size == 0:
        return origin.copy()
    pairs = zip(as_rows(member), as_rows(origin), strict=True)
    importance = np.array([np.abs(w - b) * divergence(w, b) for w, b in pairs])
    importance = importance.reshape(member.shape)
    spread = quantile(importance, 0.75) - quantile(importance, 0.25)
    threshold = quantile(importance, 0.5) + 1.5 * spread
    return f64(np.where(importance >= threshold, origin + (member - origin), origin))


# --- matrices --------------------------------------------------------------------------------


def base_plus_mean(deltas: Sequence[Array], base: Array, scale: float) -> Array:
    """What the matrix strategies do with anything but a matrix."""
    return f64(base + scale * (total(deltas) / len(deltas)))


def polar_factor(matrix: Array) -> Array:
    """P Q^T of the singular value decomposition P Sigma Q^T."""
    p, _s, qt = np.linalg.svd(matrix, full_matrices=False)
    return f64(p @ qt)


@np.errstate(under="ignore")
def tsv_m(
    members: Members, weights: Weights, base: Array | None, *, scale: float = 1.0, **_: object
) -> Array:
    """The largest singular triplets of every delta, made orthogonal to one another."""
    origin, deltas = need_base(base), deltas_of(members, base)
    if not is_matrix(origin):
        return base_plus_mean(deltas, origin, scale)
    k = max(1, min(origin.shape) // len(deltas))
    triplets = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    u = polar_factor(np.concatenate([part[0][:, :k] for part in triplets], axis=1))
    s = np.concatenate([part[1][:k] for part in triplets])
    v = polar_factor(np.concatenate([part[2][:k, :].T for part in triplets], axis=1))
    return f64(origin + scale * (u @ np.diag(s) @ v.T))


@np.errstate(under="ignore")
def iso_c(
    members: Members, weights: Weights, base: Array | None, *, scale: float = 1.0, **_: object
) -> Array:
    """The sum of the deltas with every singular value replaced by their mean."""
    origin, deltas = need_base(base), deltas_of(members, base)
    if not is_matrix(origin):
        return base_plus_mean(deltas, origin, scale)
    u, s, vt = np.linalg.svd(total(deltas), full_matrices=False)
    return f64(origin + scale * (float(np.mean(s)) * (u @ vt)))


def gram_pseudo_inverse(stacked: Array) -> Array:
    """The pseudo-inverse of A^T A, from the singular values of A."""
    _u, s, vt = np.linalg.svd(stacked, full_matrices=False)
    real = s > max(stacked.shape) * float(np.finfo(np.float64).eps) * s[0]
    return f64(vt[real].T @ np.diag(1.0 / s[real] ** 2) @ vt[real])


@np.errstate(under="ignore")
def wudi(
    members: Members, weights: Weights, base: Array | None, *, scale: float = 1.0, **_: object
) -> Array:
    """The delta that interferes least with the row spaces of all deltas, in closed form."""
    origin, deltas = need_base(base), deltas_of(members, base)
    if not is_matrix(origin):
        return base_plus_mean(deltas, origin, scale)
    rest = [d for d in deltas if norm(d) > 0.0]
    if not rest:
        return origin.copy()
    units = [unit(d) for d in rest]  # G_i = units_i^T units_i, so sum G_i = A^T A
    right = total([d @ (u.T @ u) for d, u in zip(rest, units, strict=True)])
    return f64(origin + scale * (right @ gram_pseudo_inverse(np.concatenate(units, axis=0))))


ORACLES: dict[str, Callable[..., Array]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della_linear": della_linear,
    "della": della,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "model_stock": model_stock,
    "sce": sce,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "passthrough": passthrough,
    "median": median,
    "tsv_m": tsv_m,
    "iso_c": iso_c,
    "wudi": wudi,
}
