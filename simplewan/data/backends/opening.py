"""stub"""

from pathlib import Path

from simplewan.data.backends.local import LocalBackend
from simplewan.errors import Problem, UserError


def open_backend(dataset, *, cache, emit):
    where = f'dataset "{dataset.id}"'
    if dataset.instance_data_dir is None:
        raise UserError(Problem(where, "is missing", "instance_data_dir", fix="name the folder of the files"))
    folder = Path(dataset.instance_data_dir).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is a folder that does not exist"
        raise UserError(Problem(where, what, "instance_data_dir", str(dataset.instance_data_dir)))
    return LocalBackend(folder)


def open_cache_backend(dataset):
    return None
