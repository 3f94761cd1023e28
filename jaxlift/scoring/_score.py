"""`score`: a whole data set, read, computed and written at the same time, to a store that survives its run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlift._arguments import check_option
from jaxlift._explainer import Explainer
from jaxlift._memory import as_bytes
from jaxlift.scoring import _identity
from jaxlift.scoring._device import CHUNK, LARGEST_BATCH, Program, default_budget
from jaxlift.scoring._examples import Encoding, Examples, channels, is_path, letters_axis, open_examples
from jaxlift.scoring._extra import extra
from jaxlift.scoring._places import is_url, place, resolved
from jaxlift.scoring._progress import Display
from jaxlift.scoring._reference import Given, read_reference
from jaxlift.scoring._run import Run
from jaxlift.scoring._shards import Shard, Team, lock, read_shard
from jaxlift.scoring._store import Store, StoreError, checksum_of, differences, exists, remove
from jaxlift.scoring._summary import Summary, now, seal, summarize

BATCHES = 16  # at most so many in a chunk
CHUNKS_OF_SHARD = 4  # at least, if there are examples enough
CHUNKS, FEW = 8, 64  # of a run that is no shard at least so many, if each has this many examples
KEPT = "What is finished is valid,"


def score(
    attr: Callable[..., Any],
    examples: Any,
    *,
    out: str | Path,
    reference: Given = None,
    shuffles: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | str | None = None,
    devices: Sequence[Any] | None = None,
    shard: Shard | tuple[int, int] | str | None = None,
    overwrite: bool = False,
    progress: Display = "auto",
    command: Sequence[str] | None = None,
) -> Summary:
    """Score a whole data set, and lose nothing: examples of any number in, a Zarr store of their scores out.

    >>> import jax, jax.numpy as jnp, jaxlift, numpy as np, tempfile, zarr
    >>> weights = jnp.array([[1.0, -1.0], [2.0, 0.5], [-3.0, 1.0]])
    >>> attr = jaxlift.attribute(lambda x: jax.nn.relu(x @ weights), target=0)
    >>> x = np.array([[1.0, 1.0, 0.0], [2.0, 0.5, 0.25]], np.float32)
    >>> out = f"{tempfile.mkdtemp()}/scores.zarr"
    >>> jaxlift.score(attr, x, reference="zeros", out=out, progress="none").scored
    2
    >>> zarr.open(out)["contributions"][:]
    array([[ 1.  ,  2.  , -0.  ],
           [ 2.  ,  1.  , -0.75]], dtype=float32)

    Interrupt or kill it when you like: the same call goes on where it stopped, and comes to the same bits. What counts
    as finished is on the disk with its checksum. It computes on all local devices. The shards of a run are calls in as
    many processes, on any machines, at any time, that know nothing of each other.

    Args:
        attr: what `attribute` or a method like it returns, compiled or not. Its argument is one array. Its target may
            have a row for each example: an output's number, weights `(N, ...)`, or the rows of a `Held`.
        examples: `(N, ...)`, an array, or what can be sliced like one (Zarr, HDF5); a sequence of arrays, such as a
            Grain data source; an iterable of arrays; or the path of an ``.npy``, ``.npz``, HDF5, Zarr or FASTA file,
            with ``:name`` after it where the file has several arrays. Numbers that aren't floating-point are made so.
            Records of a FASTA file are one-hot along the `channel_axis` that `attr` was given: `(L, 4)` as it comes.
        out: the store's path, on a file system that all processes share; or a URL, such as ``"s3://bucket/scores.zarr"``,
            with ``pip install 'jaxlift[cloud]'``. Examples and references may be at URLs too.
        reference: ``"zeros"``; ``"uniform"``, the same share of each letter; frequencies of the letters, such as
            ``[0.3, 0.2, 0.2, 0.3]``; ``"mean"`` of all examples; ``"frequencies"`` of the channels in all examples;
            ``"dinucleotide_shuffle"`` or ``"mononucleotide_shuffle"``; an array, or the path of one, read by its rank
            as by `attr`, `(N, R, ...)` for several references of each example; `jaxlift.genomics.MatchedRegions`; or a
            function of one example (NumPy, on the host) that returns one reference or several. Or None, for a rule that
            needs none. Frequencies and shuffles are along the `channel_axis` of `attr`. Where there are as many
            references as examples, `attr` has to say how they pair.
        shuffles, seed: how many shuffles each example is compared with, and what they are drawn from. An example's
            shuffles depend on the seed and on its place in the genome, its name in a FASTA file, or else its number,
            and on nothing else.
        batch_size: how many examples a device computes at once. Left out, as many as fit in `memory`.
        memory: bytes that the program may take on each device, or text such as ``"4GB"``. Left out, most of what an
            accelerator has, or 2 GiB of a host.
        devices: of this process; all of them, if left out.
        shard: ``(I, N)`` or ``"I/N"``: compute the chunks c with ``c % N == I`` alone, I from 0. ``"auto"`` takes both
            from the variables that a scheduler sets for the tasks of an array (Slurm, Google Batch, AWS Batch, LSF,
            Grid Engine), ``"auto/N"`` the task's number (Kubernetes and PBS give no more). Each may end and come again
            when it likes, and what is left can be shared by another N. Left out, all chunks, or in a program of
            several processes (`jax.distributed`) those of this process.
        overwrite: whether to begin anew where there is a store already, which goes when the new one has begun; at a
            URL, where nothing can be renamed, just before.
        progress: ``"bar"``, ``"lines"``, ``"none"``, or ``"auto"``: a bar on a terminal, else lines.
        command: what to write into the metadata as the command of this run, `sys.argv` if left out.

    Returns:
        a `Summary`; of a shard, that of the shard. The store has the arrays ``contributions`` (or what `attr` returns),
        ``delta``, ``output`` and ``output_reference``, which are NaN where an example is bad, ``status`` (`Status`, by
        number), ``reference``, if all examples share it, and ``sequence``, ASCII letters, where examples are one-hot
        `(L, 4)`; ``input``, a checksum of what each example was scored from, and ``checksum``, those of the chunks.
        Windows of a genome have the columns ``contig``, ``start``, ``end``, ``strand``, ``name`` and ``summit``,
        records of a FASTA file their ``name``. Several targets (`Held` with names) are an axis after the first,
        ``target``. How they were made is in the group's attributes.

    Raises:
        StoreError: if the store was made with other settings, each of which is named; if examples that are scored, or
            their references, have changed since; or another run works on it.
        ValueError, TypeError: if arguments don't fit each other. Nothing has been written then.
        Exception: what the model, the disk or an iterable raises. What was finished is kept, and is valid.
    """
    check_option("progress", progress, Display)
    extra("zarr")  # before anything is written
    path = resolved(place(out))
    explainer = explained(attr)
    team = Team()
    if shard is not None and not team.is_alone:
        raise ValueError("shard= is for runs that know nothing of each other: leave it out under jax.distributed.")
    if shard is not None and overwrite:
        raise ValueError(
            "overwrite=True would remove what other shards have: remove the store before the first begins."
        )
    if reference is None and explainer.method.needs_reference:
        name = getattr(explainer.options, "rule", explainer.method.name)
        raise TypeError(
            f"{name} compares the input with a reference: call jaxlift.score(..., reference=...), such as "
            "reference='zeros'."
        )
    mine = team.shard if shard is None else read_shard(shard)
    encoding = Encoding(channel_axis=explainer.options.last_channel_axis)
    source = open_examples(examples, encoding)
    if source.count is None and mine.count > 1:
        raise ValueError(f"{source.source} has no length: several processes share examples by number. Give a sequence.")
    if source.count == 0:
        raise ValueError(f"{source.source}: there are no examples.")
    if explainer.options.output == "hypothetical":
        channels(source, explainer.options.last_channel_axis, "hypothetical scores")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    # At most so many examples in a chunk, so that each shard has some chunks.
    limit = max(1, (source.count or 0) // (CHUNKS_OF_SHARD * mine.count)) if mine.count > 1 else BATCHES * LARGEST_BATCH
    devices = jax.local_devices() if devices is None else list(devices)
    budget = default_budget(devices[0]) if memory is None else as_bytes(memory)
    # Nobody else writes there either, and all may be finished.
    read_only = not is_url(path) and path.exists() and not os.access(path, os.W_OK)

    with contextlib.ExitStack() as held:
        if source is not examples:
            held.callback(source.close)

        def prepare(may_overwrite: bool) -> tuple[Program, Store]:
            if not read_only:
                held.enter_context(lock(path, mine))
            old = Store(path, "r" if read_only else "r+") if exists(path) else None
            store = None if may_overwrite else old
            if old is not store and any(_lies_in(given, path) for given in (examples, reference)):
                raise StoreError(f"{path} has what this run reads: choose another path, or leave out overwrite=True.")
            compared = read_reference(
                reference,
                source,
                paired=explainer.options.pairing == "paired",
                shared=explainer.options.pairing == "shared",
                shuffles=shuffles,
                seed=seed,
                stored=None if store is None else store.reference,
                encoding=encoding,
            )
            held.callback(compared.close)
            program = Program(explainer, source, compared, devices)
            columns = source.columns
            settings = _settings(program, explainer, columns)
            kept = dict(columns)
            if compared.constant is not None:
                kept["reference"] = np.asarray(compared.constant)
            if program.targets:
                kept["target"] = np.array(program.targets)
            if store is None:
                program.compile(batch_size) if batch_size else program.fit(budget, limit)
                with _replaced(path) if old is not None else contextlib.nullcontext():
                    store = _new_store(path, settings, program, kept, columns, limit)
            of_batch = {name: store.settings[name] for name in ("batch_size", "in_turn")}
            wanted = settings | of_batch | ({"batch_size": batch_size} if batch_size else {})
            if changed := differences(_comparable(store.settings, wanted), _comparable(wanted, store.settings)):
                raise StoreError(
                    "\n  ".join([f"{path} was made with other settings:", *_told(changed, source)])
                    + "\nGo on with the same settings, choose another path, or begin anew with overwrite=True."
                )
            program.use(**of_batch)
            if not read_only:
                store.complete(kept)
                store.clean()
            return program, store

        # One first, for it may have to remove an old store; the others open what that made.
        ready = None
        with team.all_or_none():
            if team.shard.index == 0:
                ready = prepare(overwrite)
        with team.all_or_none():
            program, store = ready or prepare(False)
            notes = () if read_only else source.accompany(path)
        team.leave()

        run = Run(program, store, source, mine, progress)
        with team.all_or_none():
            run.check()
            if read_only and not run.is_done:
                raise PermissionError(errno.EROFS, "can't be written to, and is not finished", str(path))
        try:
            with team.all_or_none():
                if not run.is_done:
                    record = _record(source, mine, devices, sys.argv if command is None else command)
                    store.note(record)
                    before = _stamps(source)
                    run.all()
                    if _stamps(source) != before:
                        raise StoreError(
                            f"{source.source} was changed while this run read it, so that its scores may be of two "
                            "kinds. Run it again: examples that are others now are named."
                        )
                    store.note(record | {"ended": now(), "computed": run.computed} | run.summary().numbers)
        except BaseException as error:
            error.add_note(f"{KEPT} in {path}{run.kept()}. The same call or command goes on from there.")
            raise
        finally:
            run.progress.close()
        compared = _in_words(program.reference.description)
        summary = replace(run.summary(), reference=compared, notes=tuple(notes), is_finished=store.is_finished)
        if mine.count > 1:
            summary = replace(summary, shard=str(mine))
        if summary.is_finished and not read_only and (run.computed or store.sealed is None):
            seal(store, summarize(store) if mine.count > 1 else summary)
    return summary


def _settings(program: Program, explainer: Explainer, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the scores depend on."""
    source = program.examples
    return {
        "model": program.model.description,
        "attribution": _identity.of_options(explainer.described_options) | {"program": program.checksum},
        "reference": program.reference.description,
        "examples": {
            "shape": list(source.shape),
            "dtype": source.dtype.name,
            "count": source.count,
            "letters": source.letters,
            "columns": {name: checksum_of(values) for name, values in columns.items()},
            "sample": source.sample(),
        },
        "environment": _identity.environment(program.mesh.devices.flat[0]),
    }


def _in_words(reference: Mapping[str, Any] | None) -> str | None:
    """What examples are compared with, for people: without checksums, which are for programs."""
    if reference is None:
        return None
    counted = [f"{reference[name]} {name}" for name in ("shuffles", "regions") if name in reference]
    seed = [f"seed {reference['seed']}"] if "seed" in reference else []
    return ", ".join([str(reference["name"]), *counted, *seed])


def _stamps(source: Examples) -> list[tuple[int, int]]:
    """Sizes and times of the files of this machine that examples are read from."""
    files = [path for path in map(place, source.reads) if not is_url(path) and path.is_file()]
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _comparable(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Settings without samples of examples that are bad in one of both: those may be mended."""
    sample, other = settings["examples"]["sample"], others["examples"].get("sample", {})
    good = {number: of for number, of in sample.items() if None not in (of, other.get(number))}
    return settings | {"examples": settings["examples"] | {"sample": good}}


def _told(changed: Sequence[str], source: Examples) -> list[str]:
    """What differs, as people can read it, and that first. Checksums of what follows from it are left out."""
    by_name = {line.partition(":")[0]: line for line in changed}
    columns, sums, said = [], [], []
    for name, line in by_name.items():
        if name.startswith("examples.columns."):
            columns.append(f"{source.column(name.rpartition('.')[2])} differ")
        else:
            (sums if re.match(r"\w+\.(program$|sample\.)", name) else said).append(line)
    if "examples.shape" in by_name:  # on which the windows' places depend
        columns = []
    said = sorted(said, key=lambda line: "checksum" in line or line.startswith("model.parameters"))
    return [*said, *dict.fromkeys(columns)] or sums


def _record(source: Examples, shard: Shard, devices: Sequence[Any], command: Sequence[str]) -> dict[str, Any]:
    """What a run is, for its store."""
    moment = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%f}"
    return {
        "name": f"{moment}-{platform.node()}-{os.getpid()}",
        "started": now(),
        "command": list(command),
        "examples": source.source,
        "shard": str(shard),
        "devices": len(devices),
        **_identity.machine(),
    }


def is_explained(attr: Any) -> bool:
    """Whether this is what `attribute` or a method with its signature returns, compiled or not."""
    return isinstance(_identity.uncompiled(attr), Explainer)


def explained(attr: Callable[..., Any]) -> Explainer:
    """What `attribute` or a method with its signature returned, compiled or not."""
    found: Any = _identity.uncompiled(attr)
    if not isinstance(found, Explainer):
        raise TypeError(
            f"expected what jaxlift.attribute returns, got {_identity.name_of(attr)}: write "
            "jaxlift.score(jaxlift.attribute(model, target=...), ...)."
        )
    if found.options.argnums not in (0, (0,)) or found.options.batch_argnums:
        raise ValueError("score takes models of one array: give the others with a lambda or functools.partial.")
    if found.method.gives == "map":
        raise ValueError("score takes methods whose scores sum to something.")
    return found


def _new_store(
    path: Path,
    settings: dict[str, Any],
    program: Program,
    kept: Mapping[str, np.ndarray],
    columns: Iterable[str],
    limit: int,
) -> Store:
    examples, output = program.examples, settings["attribution"]["output"]
    scores, delta, y, y_ref = program.rows
    arrays = {output: scores, "delta": delta, "output": y, "output_reference": y_ref}
    dimensions: dict[str, tuple[str, ...]] = {}
    targets = program.targets if delta[0] == (len(program.targets),) else ()  # not where references have an axis too
    of_targets = ("target",) if targets else ()
    if targets:
        dimensions |= dict.fromkeys(["delta", "output", "output_reference"], of_targets)
    axis = letters_axis(examples, program.attr.options.last_channel_axis)
    if axis is not None:
        arrays["sequence"] = (examples.shape[-3 - axis],), np.dtype(np.uint8)
        axes = ("position", "letter") if axis == -1 else ("letter", "position")
        dimensions |= {"sequence": ("position",)}
        if scores[0][len(of_targets) :] == tuple(examples.shape):  # not those of a layer, or of pairs
            dimensions |= {output: (*of_targets, *axes)}
    few = limit if examples.count is None else min(limit, max(FEW, examples.count // CHUNKS))
    batches = max(1, min(BATCHES, CHUNK // (program.batch * program.row_bytes), -(-few // program.batch)))
    return Store.create(
        path,
        settings | {"batch_size": program.batch, "in_turn": program.in_turn},
        arrays,
        examples.count,
        chunk=program.batch * batches,
        kept=kept,
        columns=columns,
        dimensions=dimensions,
        targets=targets,
    )


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[None]:
    """Make room for another store. The old one goes when the new one has begun, and comes back if that fails."""
    if is_url(path):  # where nothing can be renamed
        remove(path)
        yield
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        yield
    except BaseException:
        if path.exists():
            remove(path)
        old.rename(path)
        raise
    remove(old)


def _lies_in(given: Any, path: Path) -> bool:
    """Whether examples or references that a user gave are in a folder, as far as it can be told."""
    if is_path(given):
        before = str(given).rpartition(":")[0]
        read = [given, *([before] if before else [])]
    else:  # the array in a Zarr store knows its folder, and a memory map its file
        root, file = getattr(getattr(given, "store", None), "root", None), getattr(given, "filename", None)
        read = [*getattr(given, "reads", ()), *(each for each in (root, file) if isinstance(each, str | Path))]
    inside = str(path).rstrip("/") + "/"
    return any((str(resolved(place(each))) + "/").startswith(inside) for each in read)
