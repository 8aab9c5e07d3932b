"""Every error a user can meet, and the stable codes they carry.

ArcHaloError                 exit  1
├── UsageError                    64   the command line makes no sense
├── InvalidInputError              4
│   └── ManifestError              4   every problem of a manifest, each with file, line and column
├── PluginError                    1
│   ├── PluginConflictError        1   two plugins claim one name
│   └── UnknownPluginError         1   nothing provides the codec, strategy or format that is named
├── DatabaseError                  1
│   ├── ConnectionFailedError      1
│   ├── SchemaMismatchError        4   the database's migrations are not this program's
│   └── EmbeddedServerError        1
├── PlanError                      3
│   ├── StalePlanError             3   the database moved on since the plan was made
│   └── LockNotHadError            3
├── RefusedError                   5   a protection, an owner, a limit or a missing --yes
├── WeightsError                   1
│   ├── FormatError                4   a weight file is not what its format promises
│   ├── MissingChunkError          1
│   ├── CorruptChunkError          1
│   └── BodyStoreError             1   where bodies are kept cannot be reached, or is another's
├── CodecError                     1
├── FusionError                    1
│   ├── IncompatibleModelsError    4
│   └── NotFiniteError             4   an input holds NaN or infinities
├── ReactorError                   1   a reactor that cannot answer
│   ├── OutputError                1
│   └── MemberError                1
└── TrainingError                  1   a session that cannot be written, or not by this program
    └── CheckpointError            1   a state that cannot be kept, or is not there, or does not fit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

CODES: Mapping[str, str] = MappingProxyType(
    {
        "AH001": "the file is not YAML",
        "AH002": "a key stands twice",
        "AH003": "unknown field",
        "AH004": "a value has the wrong type",
        "AH005": "a required field is missing",
        "AH006": "a value is not one of those allowed, or not in the form asked for",
        "AH007": "a number, a text or a list is out of range",
        "AH008": "a variable has no value, or is written wrongly",
        "AH009": "the file goes beyond a limit (size, depth, aliases, length of a scalar)",
        "AH010": "a YAML feature that a manifest may not use (tag, NaN, NUL, non-string key)",
        "AH011": "a file of the project cannot be read",
        "AH012": "a path leaves the project directory",
        "AH013": "a name is declared twice, or given up by what still has it",
        "AH014": "a file is there already, and is not overwritten",
        "AH015": "a file cannot be written",
        "AH020": "a reference to something that is not declared",
        "AH021": "a dependency cycle",
        "AH022": "a bare model name that fits several versions, or none with that alias",
        "AH023": "a reactor does not fit its strategy (members, base, kind)",
        "AH024": "a merge reactor without `produces`, or another reactor with it",
        "AH025": "a source of weights is not there",
        "AH026": "a weight file is not what its format promises",
        "AH027": "a training contradicts itself, or does not fit its model",
        "AH028": "an overlay changes something that is not there",
        "AH030": "a plugin cannot be loaded, or breaks a rule of the plugin interface",
        "AH031": "two plugins claim one name",
        "AH032": "nothing provides the codec, strategy or format named",
        "AH033": "a plugin of the checkout was not loaded, as `--plugins-from` asks",
        "AH040": "the database cannot be reached",
        "AH041": "the database's schema does not fit this version of Arc-Halo",
        "AH042": "a migration file is wrong, or was changed after it was applied",
        "AH043": "the bundled PostgreSQL does not start or stop",
        "AH044": "the database refused a statement",
        "AH045": "a migration was interrupted where nothing tells how far it came",
        "AH050": "the database changed after the plan was made",
        "AH051": "another apply holds the project's lock",
        "AH052": "a resource is protected",
        "AH053": "a resource belongs to another project, or to nobody",
        "AH054": "a deletion was not confirmed",
        "AH055": "the thing asked for does not exist",
        "AH056": "a policy refuses the plan",
        "AH060": "stored bytes do not have the digest they are named by",
        "AH061": "a stored chunk is missing",
        "AH062": "a codec cannot encode or decode",
        "AH063": "weights changed while they were read, or are not those declared",
        "AH064": "a model has no weights",
        "AH065": "a body store cannot be used",
        "AH070": "models that cannot be fused with one another",
        "AH071": "a fusion strategy failed",
        "AH072": "NaN or infinities in what is to be fused",
        "AH073": "a reactor cannot answer",
        "AH074": "answers that make no sense, or that cannot be fused",
        "AH075": "a member of a reactor does not answer",
        "AH076": "a session cannot be written, taken up or deleted",
        "AH077": "a checkpoint cannot be saved or restored",
        "AH080": "the command line makes no sense",
        "AH090": "a setting has a value that makes no sense",
        "AH099": "another error",
    }
)


class ArcHaloError(Exception):
    """The base of all errors meant for users: what, where, and what to do next (`hint`)."""

    code: ClassVar[str] = "AH099"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.error_code = code or self.code
        if hint is not None:  # so that a traceback shows it, too
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message


class UsageError(ArcHaloError):
    code = "AH080"
    exit_code = 64


class InvalidInputError(ArcHaloError):
    exit_code = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong in one place. Lines and columns count from 1; 0 stands for 'unknown'."""

    code: str
    message: str
    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    snippet: str | None = None
    hint: str | None = None


class ManifestError(InvalidInputError):
    """All problems of a manifest at once, in the order of file and line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column, p.code)))
        first = self.problems[0]
        more = len(self.problems) - 1
        where = f"{first.file}:{first.line}:{first.column}: " if first.line else f"{first.file}: "
        super().__init__(
            f"{where}{first.message}" + (f" (and {more} more)" if more else ""), code=first.code
        )


class PluginError(ArcHaloError):
    code = "AH030"


class PluginConflictError(PluginError):
    code = "AH031"


class UnknownPluginError(PluginError):
    code = "AH032"


class DatabaseError(ArcHaloError):
    code = "AH044"


class LockTimeoutError(DatabaseError):
    """Another program holds rows or tables, and does so for too long."""

    code = "AH051"
    exit_code = 3


class ConnectionFailedError(DatabaseError):
    code = "AH040"


class SchemaMismatchError(DatabaseError):
    code = "AH041"
    exit_code = 4


class EmbeddedServerError(DatabaseError):
    code = "AH043"


class PlanError(ArcHaloError):
    exit_code = 3


class StalePlanError(PlanError):
    code = "AH050"


class LockNotHadError(PlanError):
    code = "AH051"


class RefusedError(ArcHaloError):
    code = "AH052"
    exit_code = 5


class NotFoundError(ArcHaloError):
    code = "AH055"


class WeightsError(ArcHaloError):
    code = "AH063"


class FormatError(WeightsError):
    code = "AH026"
    exit_code = 4


class MissingChunkError(WeightsError):
    code = "AH061"


class CorruptChunkError(WeightsError):
    code = "AH060"


class BodyStoreError(WeightsError):
    code = "AH065"


class CodecError(ArcHaloError):
    code = "AH062"


class FusionError(ArcHaloError):
    code = "AH071"


class IncompatibleModelsError(FusionError):
    code = "AH070"
    exit_code = 4


class NotFiniteError(FusionError):
    """An input of a merge holds NaN or infinities."""

    exit_code = 4
    code = "AH072"


class ReactorError(ArcHaloError):
    """A reactor that cannot answer."""

    code = "AH073"


class OutputError(ReactorError):
    """Answers that make no sense, or that a strategy can make nothing of."""

    code = "AH074"


class MemberError(ReactorError):
    """A member that does not answer."""

    code = "AH075"


class TrainingError(ArcHaloError):
    """A training session that cannot be written, or not by this program."""

    code = "AH076"


class CheckpointError(TrainingError):
    """A state that cannot be kept, or one that is asked for and is not there, or does not fit."""

    code = "AH077"
