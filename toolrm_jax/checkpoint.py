"""Training checkpoints: what a run needs to go on as if nothing had happened.

    workdir/checkpoints/{step}/state        step, parameters, optimizer moments: arrays, by Orbax
                              /meta         JSON: the loader's state, the model, the run's config
                              /files.json   every file with its size and checksum; written last
    workdir/checkpoints/{step}.partial      while it is being written

Nothing here is pickled. A save copies the arrays to the host and goes on in a thread. All processes
take part: each writes its own shards and says how that went, and only if all went well does process
0 give the folder its name. So a full disk on one of them is a failed save on all of them, alike,
and training goes on. (Orbax's own CheckpointManager writes the same files; an error on one process
leaves the others of it waiting at a barrier until that gives up, hence the protocol here.)

    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(state, meta)
        state, meta = checkpoints.restore(like=state)
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from toolrm_jax.checkpoint_files import (
    LISTING,
    DamagedError,
    Entry,
    describe,
    files_below,
    listing,
    read_listing,
    refuse_damage,
    share,
)
from toolrm_jax.errors import InputError, first_line
from toolrm_jax.files import write_durably
from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.paths import absolute, is_remote
from toolrm_jax.processes import Exchange
from toolrm_jax.train_step import TrainState

_CHUNK_BYTES = 64 << 20
_META = "meta/metadata"
# What reading a file raises that is not what was written, or not there.
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)
Score = tuple[float, float]  # held-out accuracy, minus the loss: the larger the better


class CheckpointsError(InputError, RuntimeError):
    """No checkpoint of a run can be used; the message says why not."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """How a save ended: `error` is empty, or says what went wrong (with any of the processes)."""

    step: int
    error: str


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best one besides, if it is wanted.

    To be used by one thread of each process, by all processes alike.
    """

    def __init__(
        self,
        workdir: str | Path | epath.Path,
        keep: int = 2,
        *,
        keep_best: bool = True,
        checksums: bool = True,
        say: Callable[[str], None] = logging.warning,
    ):
        self.folder = absolute(workdir) / "checkpoints"
        self._keep, self._keep_best, self._checksums, self._say = keep, keep_best, checksums, say
        self._handler = ocp.StandardCheckpointHandler()
        self._main, self._background = Exchange("checkpoints"), Exchange("save")
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._ended: list[Saved] = []
        self.failures = 0  # saves that failed
        self._scores: dict[int, Score | None] = {}  # of each step that is there
        self._open()
        self._best_score = self._best()[1]

    def _open(self) -> None:
        """Process 0 looks, and tells the others: they need not see the same folder just now."""
        scores: dict[str, Score | None] = {}
        problem = _attempt(lambda: scores.update(self._found())) if _is_lead() else ""
        problem, scores = json.loads(self._main.from_first(json.dumps([problem, scores])))
        if problem:
            raise self._unreadable(problem)
        self._scores = {int(step): s and (s[0], s[1]) for step, s in scores.items()}

    def _unreadable(self, problem: str) -> CheckpointsError:
        return CheckpointsError(
            f"{self.folder} cannot be read now ({problem}). Start again by the same command when "
            f"it can."
        )

    def _found(self) -> dict[str, Score | None]:
        """The steps on disk and their scores; what is half-written is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._incomplete():
            self._say(f"removing {path}: a save that was not completed")
        self._remove_incomplete()
        return {str(step): self._score(step) for step in self._on_disk()}

    def _incomplete(self) -> list[epath.Path]:
        paths = list(self.folder.glob("*.partial"))
        if is_remote(self.folder):
            steps = [self.folder / str(step) for step in self._on_disk()]
            paths += [path for path in steps if not (path / LISTING).exists()]
        return paths

    def _remove_incomplete(self) -> None:
        """Only between saves. What cannot be removed now, since writers of a save that failed are
        still at work or someone reads it over NFS, is tried again at the next save."""
        for path in self._incomplete():
            _attempt(path.rmtree)

    def _on_disk(self) -> list[int]:
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:  # a bucket has no empty folders
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def _score(self, step: int) -> Score | None:
        try:
            return read_listing(self.folder / str(step)).get("score")
        except DamagedError:  # said when it is to be restored
            return None

    # --- What is there ----------------------------------------------------------------------------

    def latest(self) -> int | None:
        """The newest step, or None; `restore` finds out whether it is sound."""
        return max(self._scores, default=None)

    def best(self) -> tuple[int, Score] | None:
        """The step with the best evaluation of those that are there, and what it was."""
        self.wait()
        step, score = self._best()
        return None if step is None or score is None else (step, score)

    def improves(self, score: Score) -> bool:
        """Whether a state with this evaluation is to be saved as the best one so far."""
        return self._keep_best and (self._best_score is None or score > self._best_score)

    def _best(self) -> tuple[int | None, Score | None]:
        """The earlier one of equals."""
        scored = [(score, -step) for step, score in self._scores.items() if score]
        return (-max(scored)[1], max(scored)[0]) if scored else (None, None)

    # --- Saving -----------------------------------------------------------------------------------

    def save(self, state: TrainState, meta: dict[str, Any], score: Score | None = None) -> None:
        """Saves the state under its own step, with JSON metadata; returns once it is copied.

        It does not raise where the save fails: see `ended`.
        """
        step = int(state.step)
        self.wait()
        if step in self._scores:
            return
        partial = self._partial(step)
        problem = _attempt(lambda: self._prepare(partial)) if _is_lead() else ""
        problem = self._main.from_first(problem)
        if problem:
            self._end(step, problem)
            return
        futures: list[Any] = []
        problem = _attempt(lambda: futures.extend(self._start(partial, state)))
        # Not what the thread finds out: when it does so differs between processes.
        self._best_score = max((x for x in (self._best_score, score) if x), default=None)
        self._thread = threading.Thread(
            target=self._run, args=(step, futures, problem, meta, score), name=f"save-{step}"
        )
        self._thread.start()

    def _partial(self, step: int) -> epath.Path:
        """Where a checkpoint is written. A bucket cannot rename: there, files.json makes it one."""
        return self.folder / (str(step) if is_remote(self.folder) else f"{step}.partial")

    def _prepare(self, partial: epath.Path) -> None:
        self._remove_incomplete()
        if partial.exists():
            partial.rmtree()
        (partial / "state").mkdir(parents=True)
        (partial / "meta").mkdir()

    def _start(self, partial: epath.Path, state: TrainState) -> list[Any]:
        tree = _tree(state)
        args = ocp.args.StandardSave(tree, save_args=jax.tree.map(_chunks, tree))
        return _run_now(self._handler.async_save(partial / "state", args=args)) or []

    def _run(
        self,
        step: int,
        futures: list[Any],
        problem: str,
        meta: dict[str, Any],
        score: Score | None,
    ) -> None:
        """The rest of a save, in its thread; what it raises ends the run at the next `wait`."""
        try:
            problem = self._commit(step, futures, problem, meta, score)
            if problem and _is_lead():  # it takes room that the next one needs
                self._remove_incomplete()
            if not problem:
                self._scores[step] = score
                self._prune(step)
            self._end(step, problem)
        except BaseException as error:
            self._crash = error

    def _commit(self, step, futures, problem, meta, score) -> str:
        """Waits for every process's part and completes the checkpoint; what went wrong, if so."""
        partial, mine = self._partial(step), {}

        def finish() -> None:
            for future in futures:
                future.result()
            part = partial / "state" / f"ocdbt.process_{jax.process_index()}"
            if part.exists():  # a process that holds copies alone writes nothing
                mine.update(describe(files_below(part), partial, self._checksums))

        problem = problem or _attempt(finish)
        told = [json.loads(x) for x in self._background.gather(json.dumps([problem, mine]))]
        problems = {number: problem for number, (problem, _) in enumerate(told) if problem}
        if problems:
            return "; ".join(_by_process(number, text) for number, text in problems.items())
        files = {name: entry for _, part in told for name, entry in part.items()}
        if _is_lead():
            problem = _attempt(lambda: self._complete(step, files, meta, score))
        return self._background.from_first(problem)

    def _complete(
        self, step: int, files: dict[str, Entry], meta: dict[str, Any], score: Score | None
    ) -> None:
        """Process 0: joins the parts, writes what describes them, and gives the folder its name."""
        partial, final = self._partial(step), self.folder / str(step)
        self._handler.finalize(partial / "state")
        write_durably(partial / _META, json.dumps(meta))
        rest = [p for p in files_below(partial) if p.relative_to(partial).as_posix() not in files]
        files |= describe(rest, partial, self._checksums)
        write_durably(partial / LISTING, listing(files, step=step, score=score))
        if partial != final:
            self._discard(step)  # a damaged one that this one replaces
            partial.rename(final)

    def _prune(self, saved: int) -> None:
        """Removes what is older than the newest few and not the best, and damaged ones as well."""
        kept = set(sorted(self._scores)[-self._keep :])
        best, _ = self._best()
        if self._keep_best and best is not None:
            kept.add(best)
        self._scores = {step: score for step, score in self._scores.items() if step in kept}
        if _is_lead():
            for step in self._on_disk():
                if step not in kept and step < saved:
                    problem = _attempt(functools.partial(self._discard, step))
                    if problem:
                        self._say(f"checkpoint {step} cannot be removed: {problem}")

    def _discard(self, step: int) -> None:
        """Never under its name by halves, where the file system can rename."""
        path = self.folder / str(step)
        if not path.exists():
            return
        if not is_remote(path):
            path = path.rename(self.folder / f"{step}.removed.partial")
        else:
            (path / LISTING).unlink(missing_ok=True)
        path.rmtree()

    def _end(self, step: int, problem: str) -> None:
        self.failures += bool(problem)
        self._ended.append(Saved(step, problem))

    def ended(self) -> list[Saved]:
        """The saves that ended since the last call. Processes may learn of one at different times,
        but after `wait` all of them know the same."""
        ended, self._ended = self._ended, []
        return ended

    def wait(self) -> None:
        """Returns when everything saved so far is on disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._best_score = self._best()[1]
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise crash

    def close(self) -> None:
        """Waits."""
        self.wait()
        self._handler.close()

    # --- Restoring --------------------------------------------------------------------------------

    def restore(
        self,
        like: TrainState,
        step: int | None = None,
        accept: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest sound state (or the one at `step`), laid out as `like` is, and its metadata.

        A damaged checkpoint is passed over, with a warning that says why. `accept` may refuse the
        metadata, by raising, before the arrays are read.

        Raises:
          CheckpointsError: none is sound.
        """
        self.wait()
        steps = sorted(self._scores, reverse=True) if step is None else [step]
        problems = []
        for candidate in steps:
            problem, meta = self._read_meta(candidate)
            if not problem:
                accept(meta)
                problem, state = self._restore(like, candidate)
            if not problem:
                return state, meta
            problems.append(f"{candidate}: {problem}")
            self._say(f"checkpoint {candidate} is damaged and is passed over: {problem}")
            self._scores.pop(candidate, None)
            self._best_score = self._best()[1]
        raise CheckpointsError(
            f"{self.folder} has no sound checkpoint ({'; '.join(problems) or 'it has none'}). "
            f"Bring one back from a copy, or start anew with another --workdir."
        )

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The metadata alone."""
        step = self.latest() if step is None else step
        return json.loads((self.folder / str(step) / _META).read_text())

    def _read_meta(self, step: int) -> tuple[str, dict[str, Any]]:
        found: dict[str, Any] = {}

        def read() -> None:
            folder = self.folder / str(step)
            refuse_damage(folder, read_listing(folder)["files"], [_META])
            found.update(self.meta(step))

        return self._agree(read, damage=_DAMAGE), found

    def _restore(self, like: TrainState, step: int) -> tuple[str, Any]:
        """What is wrong with the files, if anything, and else the state."""
        folder, states = self.folder / str(step), []
        files = read_listing(folder)["files"]
        mine = share(files, jax.process_index(), jax.process_count())
        problem = self._agree(lambda: refuse_damage(folder, files, mine), damage=_DAMAGE)
        if problem:
            return problem, None
        if all(crc is not None for _, crc in files.values()):
            # What goes wrong now is no damage, and passing over good checkpoints would hide it.
            return "", self._restore_arrays(like, step)
        # Without checksums, whatever Orbax says may be damage.
        problem = self._agree(
            lambda: states.append(self._restore_arrays(like, step)), damage=(Exception,)
        )
        return problem, next(iter(states), None)

    def _agree(self, check: Callable[[], None], *, damage: tuple[type[Exception], ...]) -> str:
        """What the check found on any of the processes.

        Raises:
          CheckpointsError: an error that is no damage: a disk or a store that does not answer now.
            What is sound must not be passed over because of it.
        """
        problem, damaged = "", True
        try:
            check()
        except Exception as error:
            problem, damaged = _in_a_line(error), isinstance(error, damage)
        told = self._main.gather(json.dumps([problem, damaged]))
        problems = [(number, *json.loads(text)) for number, text in enumerate(told)]
        unread = [_by_process(number, text) for number, text, damaged in problems if not damaged]
        if unread:
            raise self._unreadable("; ".join(unread))
        return next((_by_process(number, text) for number, text, _ in problems if text), "")

    def _restore_arrays(self, like: TrainState, step: int) -> TrainState:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like)
        )
        args = ocp.args.StandardRestore(target)
        tree = self._handler.restore(self.folder / str(step) / "state", args=args)
        opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), tree["opt_state"])
        return TrainState(tree["step"], tree["params"], opt_state)


def _tree(state: TrainState) -> dict[str, Any]:
    """Plain dicts and lists: optax's own containers would tie the file to its class names."""
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": jax.tree.leaves(state.opt_state),
    }


def _chunks(array: jax.Array) -> ocp.SaveArgs:
    """One layer at most in a chunk, so that a layer can be read without the rest of its stack: for
    a 7B, 272 MB of 7.6 GB. Without this, Orbax makes a chunk of all that a device holds."""
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if array.ndim == 3 else ())


def _run_now(coroutine: Any) -> Any:
    """In a thread of its own: a notebook's thread has an event loop already."""

    def run() -> Any:
        # asyncio.run would end with a look at the tasks of all threads, which others change.
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


def _attempt(work: Callable[[], Any]) -> str:
    """Does it; what went wrong, in a line, or nothing."""
    try:
        work()
    except Exception as error:
        return _in_a_line(error)
    return ""


def _in_a_line(error: Exception) -> str:
    ours = isinstance(error, DamagedError)
    return first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"


def _by_process(number: int, problem: str) -> str:
    return problem if jax.process_count() == 1 else f"process {number}: {problem}"


def _is_lead() -> bool:
    return jax.process_index() == 0


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as JSON; `config_from_json` undoes it."""
    return dataclasses.asdict(config)


def config_from_json(data: dict[str, Any]) -> ModelConfig:
    """The ModelConfig that `config_to_json` wrote."""
    rope = data["rope"]
    scaling = tuple((name, value) for name, value in rope["scaling"])
    return ModelConfig(**{**data, "rope": Rope(rope["theta"], rope["type"], scaling)})
