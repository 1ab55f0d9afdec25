"""Names by which Python code reads what is in none of its own values: files, clocks, random numbers, other code."""

import random

import numpy as np
import torch


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Builtins whose result depends on more than their arguments and on what a digest can look into.
BUILTINS = _words("open input eval exec compile globals __import__ id hash breakpoint")

# Functions and attributes, of the standard library, numpy and torch, that read files, clocks or the system.
NAMES = _words(
    "environ environb getenv urandom read_text read_bytes now utcnow today default_rng fromfile loadtxt genfromtxt "
    "memmap load load_file safe_open urlopen getpid listdir scandir getcwd iterdir import_module reload SystemRandom "
    "get_ident current_thread _getframe currentframe perf_counter perf_counter_ns monotonic time_ns process_time "
    "getsizeof get_objects get_referrers f_locals f_globals f_back open from_file stat exists is_file is_dir getmtime "
    "getsize glob rglob read_csv read_table read_parquet read_json read_excel read_pickle read_feather read_hdf "
    "read_sql read_fwf read_html read_xml open_dataset open_zarr open_mfdataset load_dataset load_model "
    "from_pretrained hf_hub_download getline getlines geterr getcontext localcontext get_default_dtype "
    "get_num_threads get_num_interop_threads is_grad_enabled is_inference_mode_enabled data_ptr getrecursionlimit "
    "getrefcount getEffectiveLevel isEnabledFor argv __doc__ __annotations__"
)

# Modules of the standard library in which nearly every function does.
MODULES = _words(
    "time secrets uuid subprocess socket tempfile glob shutil getpass platform gc importlib ctypes mmap urllib http "
    "resource select sqlite3 multiprocessing signal shelve dbm os posix nt io _io sys gzip bz2 lzma zipfile tarfile "
    "linecache fileinput locale inspect traceback"
)

# Names by which an attribute is read through a text, so that the code does not name it.
BY_TEXT = _words("getattr vars dir __dict__ attrgetter methodcaller __getattribute__ globals locals modules getmembers")

# Functions, methods and attributes that draw from the global generators of torch, numpy or Python.
RANDOM = _words(
    "rand randn randint random randperm rand_like randn_like randint_like normal normal_ uniform uniform_ bernoulli "
    "bernoulli_ multinomial poisson binomial exponential exponential_ geometric_ cauchy_ log_normal_ random_ dropout "
    "dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout rrelu rrelu_ "
    "gumbel_softmax sample rsample shuffle permutation choice choices gauss standard_normal random_sample randrange "
    "normalvariate getrandbits sobol xavier_normal_ xavier_uniform_ kaiming_normal_ kaiming_uniform_ trunc_normal_ "
    "get_rng_state initial_seed get_state getstate orthogonal_ sparse_ svd_lowrank pca_lowrank lobpcg "
    "scaled_dot_product_attention multi_head_attention_forward reset_parameters"
)

# Constants of math, numpy and torch: part of the name, so that they need not be looked into.
CONSTANTS = _words("pi e inf nan tau newaxis euler_gamma maxsize little_endian True_ False_")


def random_states() -> list:
    """The states of the global random generators of torch, numpy and Python."""
    states: list = [torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()]  # noqa: NPY002
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states
