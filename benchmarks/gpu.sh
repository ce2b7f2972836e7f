#!/usr/bin/env bash
# Measure and test the package on a GPU in at most ten minutes: benchmarks/gpu.sh [FOLDER]
set -uo pipefail

usage() {
  cat <<'TEXT'
Usage: benchmarks/gpu.sh [--small] [--device NAME] [--parts LIST] [FOLDER]

Measures the machine, the speed of the methods, the contract and a resumed run on a GPU. Findings are printed and
written to FOLDER, or to $OUT, or to runs/gpu. Exit code 1 where a part failed; the others run all the same.

  --small        the same parts in small form, to try the script; a few minutes on a CPU
  --device NAME  cuda (default), cuda:N or cpu
  --parts LIST   some of machine,speed,contract,resume

The interpreter is $PYTHON, or that of .venv, or python3 if it has all packages; else .venv is made, with pip.
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
small=() device=cuda parts="machine speed contract resume" out=${OUT:-$root/runs/gpu}
while (($#)); do
  case $1 in
    --small) small=(--small) ;;
    --device | --parts)
      (($# > 1)) || { echo "$1 needs a value." >&2; exit 2; }
      if [[ $1 == --device ]]; then device=$2; else parts=${2//,/ }; fi
      shift ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "Unknown option $1." >&2; usage >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
for part in $parts; do
  case $part in machine | speed | contract | resume) ;; *) echo "There is no part $part." >&2; exit 2 ;; esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$root" || exit 2

total=580 # seconds for everything
declare -A most=([machine]=60 [speed]=300 [contract]=240 [resume]=120) # that each part may take
declare -A rest=([machine]=0 [speed]=150 [contract]=60 [resume]=0)     # that it leaves to those behind it

# A checkout counts before an installed copy, and needs no installation: what pip would note down is its version alone.
about=$(mktemp -d)
trap 'rm -rf "$about"' EXIT
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1)
mkdir "$about/ostinato-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: ostinato\nVersion: %s\n' "$version" >"$about/ostinato-$version.dist-info/METADATA"
export PYTHONPATH="$root/src:$root:$about${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
((${#small[@]})) && export OMP_NUM_THREADS=1 # a second thread costs small models more than it gives

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
  elif [[ -x .venv/bin/python ]]; then
    python=.venv/bin/python
  elif python3 -c "import ostinato.cli, ostinato.runs.lifecycle, torchvision" 2>/dev/null; then
    python=python3
  else
    echo "Making .venv from requirements.txt."
    python=.venv/bin/python
    python3 -m venv .venv || return 1
    timeout 300 $python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt || return 1
  fi
  "$python" -c "import ostinato.runs.lifecycle" || { echo "$python cannot import the package."; return 1; }
}

run_parts() {
  local failed=0 part left code
  find_python || { echo "FAILED: there is no Python with the packages that are needed."; return 1; }
  for part in $parts; do
    left=$((total - SECONDS - rest[$part]))
    ((left > most[$part])) && left=${most[$part]}
    echo "== $part"
    if ((left < 20)); then
      echo "FAILED: $part: no time is left."
      failed=1
      continue
    fi
    timeout -k 5 "$left" "$python" -m benchmarks.gpu "$part" --device "$device" --out "$out" \
      --seconds "$((left - 10))" "${small[@]}"
    code=$?
    if ((code == 124 || code == 137)); then
      echo "FAILED: $part: stopped after $left s."
    elif ((code != 0)); then
      echo "FAILED: $part: exit code $code."
    fi
    ((code == 0)) || failed=1
  done
  echo "== $SECONDS s; $( ((failed)) && echo "some parts failed, see FAILED above" || echo "all parts ran through")"
  return $failed
}

run_parts 2>&1 | tee "$out/findings.txt"
exit "${PIPESTATUS[0]}"
