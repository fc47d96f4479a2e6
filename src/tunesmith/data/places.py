"""What a path in a config means: a file, a folder of files, a folder that Hugging Face's `datasets` saved, or a dataset of the hub.

    found = find("../data/tasks", part="train")
    [place.name for place in found.places]      # ["hotels", "trains"]: tasks/hotels.jsonl and tasks/trains.csv, two datasets
    found.said                                  # 'tasks: 2 files, each a task; not read: README.md'

The rules, in this order; what they came to is said aloud:

1. A file is a dataset.
2. A folder that `save_to_disk` wrote (Arrow files beside dataset_info.json) is one, and one with dataset_dict.json has one per split.
3. Shards (NAME-00000-of-00002.parquet, …) are one file, called NAME.
4. A folder whose files are called as splits are (train, validation, test) is one dataset: the part that is read for is the split
   that is taken, train.jsonl for training and test.jsonl for the test; "FOLDER:NAME" takes another one.
5. In any other folder each file is a dataset of its own. Files further down are looked for only where there is none at the top.
6. owner/name, owner/name/subset, each also with :split, is a dataset of the hub, downloaded once as a folder. Only files of rows
   are fetched: a dataset that needs a script is refused.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import is_hub_name
from tunesmith.data.readers import KINDS, listed
from tunesmith.errors import BadInput, MachineFailed, nearest
from tunesmith.names import is_plain

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_WORDS = {word for words in SPLITS.values() for word in words}
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # beside the rows, not rows
FETCHED = ("parquet", "jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv")


@dataclass(frozen=True)
class Place:
    """One dataset: its name and its files, in the order in which they are read. `origin`: what facts about a file are kept under."""

    name: str
    files: tuple[Path, ...]
    origin: Callable[[Path], str]


@dataclass(frozen=True)
class Found:
    """`are_tasks`: the path is a folder in which every file is a dataset, be there only one."""

    places: tuple[Place, ...]
    said: tuple[str, ...] = ()
    are_tasks: bool = False


def find(path: str, part: str) -> Found:
    """The datasets that `path` means when it is read for `part`: train, validation or test.

    Raises BadInput where the path names nothing, or a choice that only the user can make.
    """
    local, split = Path(path).expanduser(), ""
    if not local.exists() and ":" in path and Path(path.rpartition(":")[0]).expanduser().exists():
        head, _, split = path.rpartition(":")
        local = Path(head).expanduser()
    if is_hub_name(path):
        name, _, split = path.partition(":")
        return _in_hub(name, split, part)
    if local.is_dir():
        return _in_folder(local, local.name or str(local.resolve().name), part, split, lambda file: str(file.absolute()))
    if split:
        raise BadInput("a file has no splits", where=path, fix=str(local))
    return Found((Place(stem(local), (local,), lambda file: str(file.absolute())),))  # the reader says so if there is no such file


def stem(path: Path) -> str:
    """The name of a file without what says its kind: hotels for hotels.jsonl.gz."""
    name = path.name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in KINDS else name


# -------------------------------------------------------------------------------------------------------------- folders


def _in_folder(folder: Path, name: str, part: str, split: str, origin: Callable[[Path], str]) -> Found:
    if is_saved(folder):
        if split:
            raise BadInput("this saved dataset is one split", where=f"{folder}:{split}", fix=str(folder))
        beside = _saved_beside(folder)
        told = (f"{name}: the split {folder.name}; not read: {listed(beside)}",) if beside else ()
        return Found((Place(name, _saved_files(folder), origin),), told)
    groups, left = _groups(folder)
    if not groups:
        nested = sorted(path for path in folder.iterdir() if path.is_dir() and _groups(path)[0])
        if len(nested) == 1:
            return _in_folder(nested[0], name, part, split, origin)
        below = f"it has the folders {listed([path.name for path in nested])}" if nested else f"it holds {listed(left) or 'nothing'}"
        fix = f"name one of them: {nested[0]}" if nested else "a folder with JSONL, JSON, CSV, TSV, Parquet or Arrow files"
        raise BadInput("the folder holds no files of rows", where=f"{folder}: {below}", fix=fix)
    if split or _are_splits(list(groups)):
        chosen = _split_of(list(groups), part, split, folder)
        n_files = f" ({len(groups[chosen])} files)" if len(groups[chosen]) > 1 else ""
        others = [other for other in groups if other != chosen]
        said = f"{name}: the split {chosen}{n_files}" + (f"; not read: {listed(others)}" if others else "")
        return Found((Place(name, groups[chosen], origin),), (said,))
    said = f"{name}: {len(groups)} {'datasets' if len(groups) > 1 else 'dataset'}" + (", each a task" if len(groups) > 1 else "")
    said += f"; not read: {listed(left, 5)}" if left else ""
    return Found(tuple(Place(group, files, origin) for group, files in groups.items()), (said,), are_tasks=True)


def _groups(folder: Path) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Name → files of each dataset at the top of a folder, shards together, by name; and the names of what is left over."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise BadInput(f"this folder cannot be read: {error.strerror}", where=str(folder), fix="check its permissions") from None
    about = {path.name for path in inside if path.name in ABOUT}
    kinds = {path: KINDS.get(Path(path.name.lower().removesuffix(".gz")).suffix, "") for path in inside if path.is_file()}
    rows = [path for path, kind in kinds.items() if kind and kind != "text" and path.name not in about]
    rows = rows or [path for path, kind in kinds.items() if kind == "text"]  # beside files of rows, text is about them
    groups: dict[str, tuple[Path, ...]] = {}
    for path in rows:
        shard = SHARD.fullmatch(stem(path))
        name = shard[1] if shard else stem(path)
        if name in groups and not shard:
            name = path.name  # hotels.csv beside hotels.jsonl
        groups[name] = (*groups.get(name, ()), path)
    for path in inside:
        if path.is_dir() and is_saved(path):
            groups[path.name] = _saved_files(path)
    left = [path.name for path in kinds if path not in rows and path.name not in about]
    return groups, left


def _are_splits(names: list[str]) -> bool:
    """Whether names are those of splits: one of them exactly (train), or all of them by their first word (train_sft, test_sft)."""
    exact = any(name.lower() in SPLIT_WORDS for name in names)
    return exact or all(re.split(r"[-_.]", name.lower())[0] in SPLIT_WORDS for name in names)


def _split_of(names: list[str], part: str, split: str, folder: Path) -> str:
    if split:
        if split not in names:
            raise BadInput(f'there is no split "{split}"', where=f"{folder}: {listed(names)}", fix=nearest(split, names))
        return split
    wanted = [name for name in names if name.lower() in SPLITS[part]]
    wanted = wanted or [name for name in names if re.split(r"[-_.]", name.lower())[0] in SPLITS[part]]
    if len(wanted) != 1:
        what = f"there is no split for data.{part}" if not wanted else f"several splits may be meant by data.{part}"
        raise BadInput(what, where=f"{folder}: {listed(names)}", fix=f'name one: "{folder}:{(wanted or names)[0]}"')
    return wanted[0]


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved one split here."""
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def _saved_beside(folder: Path) -> list[str]:
    """The other splits of the DatasetDict that a saved split is one of."""
    whole = folder.resolve()
    if not (whole.parent / "dataset_dict.json").is_file():
        return []
    return sorted(path.name for path in whole.parent.iterdir() if path.is_dir() and path != whole and is_saved(path))


def _saved_files(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of a saved dataset, in the order that its state.json gives."""
    fix = "save it again with save_to_disk"
    try:
        state: Any = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadInput("the saved dataset does not say which files it has", where=str(folder / "state.json"), fix=fix) from None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadInput("the saved dataset is a selection of rows of its files", where=str(folder / "state.json"), fix=fix)
    if not names or not all(is_plain(name) for name in names):
        raise BadInput("the saved dataset names no files of its own", where=str(folder / "state.json"), fix=fix)
    return tuple(folder / name for name in names)


# ------------------------------------------------------------------------------------------------------------------ hub


def _in_hub(name: str, split: str, part: str) -> Found:
    owner, dataset, *subset = name.split("/")
    root = _download(f"{owner}/{dataset}", subset[0] if subset else "")
    folder = root.joinpath(*subset)
    if subset and not folder.is_dir():
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise BadInput(f'the dataset has no subset "{subset[0]}"', where=f"{name} on the hub", fix=nearest(subset[0], folders))
    found = _in_folder(folder, subset[0] if subset else dataset, part, split, lambda file: f"{owner}/{dataset}/{file.relative_to(root)}")
    return Found(found.places, (f"{owner}/{dataset}: from the hub, version {root.name[:12]}", *found.said), found.are_tasks)


def _download(repository: str, subset: str) -> Path:
    """The folder of a hub dataset's files of rows, fetched where they are not in the cache already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    fix = "name a file or a folder that is there, or check the name on the hub"
    start = f"*{subset}/" if subset else ""
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[f"{start}*.{kind}" for kind in FETCHED]))
    except GatedRepoError:
        raise BadInput(
            "this hub dataset asks for its terms to be accepted", where=repository, fix="accept them there, then hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise BadInput("there is neither such a path nor such a hub dataset", where=repository, fix=fix) from None
    except LocalEntryNotFoundError:
        raise BadInput(
            "there is no such path, and the hub cannot be reached to look there",
            where=repository,
            fix="name a file or a folder that is there",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise MachineFailed(f"the hub dataset cannot be fetched: {str(error).splitlines()[0]}", where=repository, fix="try again") from None
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        raise BadInput(
            "this hub dataset has no files of rows (a script that makes them is not run)",
            where=repository,
            fix="load it with the datasets library, save_to_disk(FOLDER), and give the folder",
        )
    return folder
