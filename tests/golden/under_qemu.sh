#!/usr/bin/env bash
# The golden run of pocket on another processor: a Python for aarch64 from Debian and torch's CPU build for it, under
# qemu. Prints how many arrays differ at the levels neon and portable; takes about five minutes and 700 MB in $1.
#   apt-get install -y qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross
#   bash tests/golden/under_qemu.sh /tmp/arm          (as root, from the repository's root, after `make test`)
set -euo pipefail
ROOT=$PWD PIP=$PWD/.venv/bin/pip SITE=$PWD/.venv/lib/python3.11/site-packages
mkdir -p "$1"/{debs,wheels,root,site,pure} && cd "$1"

dpkg --add-architecture arm64 && apt-get update -qq
packages="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libssl3 zlib1g libexpat1 libffi8 libbz2-1.0
  liblzma5 libsqlite3-0 libuuid1 libgcc-s1 libstdc++6 libgomp1 libcrypt1"
(cd debs && for name in $packages; do apt-get download -qq "$name:arm64"; done)
for deb in debs/*.deb; do dpkg -x "$deb" root; done
dpkg --remove-architecture arm64

# Compiled packages come from the registry, for aarch64; pure Python ones from this environment. 2.9.1 is a CPU build.
"$PIP" download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp -d wheels \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_24_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
  torch==2.9.1 numpy ml_dtypes safetensors tokenizers openai-harmony psutil MarkupSafe pydantic-core pandas
for wheel in wheels/*.whl; do unzip -qo "$wheel" -d site; done
for name in typing_extensions.py six.py sympy mpmath networkx jinja2 filelock fsspec xarray tqdm packaging pydantic \
  annotated_types typing_inspection dateutil tzdata huggingface_hub; do ln -sfn "$SITE/$name" pure/; done
for info in "$SITE"/*.dist-info; do ln -sfn "$info" pure/; done

rm -rf tree && git clone -q "$ROOT" tree && cd tree
CC=aarch64-linux-gnu-gcc python3 -I workbench/model/kernels/build.py
export PYTHONPATH=$PWD:$1/site:$1/pure PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
exec qemu-aarch64-static -L "$1/root" "$1/root/usr/bin/python3.11" -m tests.golden.pocket_fp32 --compare neon portable
