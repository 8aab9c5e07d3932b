"""The Python API: models, tensors, reactors, training and inference of one database."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from arc_halo.api.embeddings import Embeddings
from arc_halo.api.inference import Inference
from arc_halo.api.models import Models
from arc_halo.api.reactors import Reactors
from arc_halo.api.tensors import Tensors
from arc_halo.api.training import Training
from arc_halo.config import find_project
from arc_halo.project import Project


def connect(
    database_url: str | None = None,
    *,
    project: Path | str | None = None,
    migrate: bool = True,
    env: str | None = None,
) -> Halo:
    """Open the database of a project, for use in a `with`.

    `project` is a directory; without one it is the nearest with an `arc_halo.yaml`, or the current
    one. Without `database_url` the database is the one `arc-halo` would use there. Pending
    migrations are applied unless `migrate` is False. `env` is the environment, as `--env` names
    it. Raises `ConnectionFailedError`.
    """
    directory = Path(project) if project else find_project(Path.cwd()) or Path.cwd()
    opened = Project(directory, database_url=database_url, env=env)
    try:
        if migrate:
            opened.migrate()
        else:
            opened.check_schema()
    except BaseException:
        opened.close()
        raise
    return Halo(opened)


class Halo:
    """A database of models: `halo.models`, `halo.tensors`, `halo.embeddings`, `halo.reactors`,
    `halo.training`, `halo.inference`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.models = Models(project)
        self.tensors = Tensors(project)
        self.embeddings = Embeddings(project)
        self.reactors = Reactors(project)
        self.training = Training(project)
        self.inference = Inference(project)

    def close(self) -> None:
        """End sessions and reactors, close connections, and stop the embedded server if nobody
        else uses it."""
        with ExitStack() as stack:
            stack.callback(self.project.close)
            stack.callback(self.reactors.close)
            stack.callback(self.inference.close)
            self.training.close()

    def __enter__(self) -> Halo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is not None:
            self.inference.close(value)
            self.training.close(value)
        self.close()
