"""Look up the packages of a lock in the public index of known vulnerabilities.

    python scripts/vulnerabilities.py constraints.txt

exits with 1 if a vulnerability is known, or if the lock cannot be read. If the index does not answer, or knows none of
the packages, as behind a mirror of packages only, a line says so and the exit code is 0. If a package is locked once
per Python version or platform, the version for this machine is looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap


def verdict(packages: list[dict]) -> tuple[int, str]:
    """Convert the field ``dependencies`` of pip-audit's report to an exit code and a text for the terminal."""
    asked = [package for package in packages if "skip_reason" not in package]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if not asked:
        return 0, f"Vulnerabilities: NOT LOOKED UP, the index knows none of the {len(unknown)} packages."
    found = [
        f"{package['name']} {package['version']}: {entry['id']}, "
        + (f"repaired in {', '.join(entry['fix_versions'])}" if entry["fix_versions"] else "not repaired yet")
        for package in asked
        for entry in package["vulns"]
    ]
    count = f"{len(asked)} package{'s' if len(asked) > 1 else ''}"
    lines = [f"Vulnerabilities: {len(found) or 'none'} {'are' if len(found) > 1 else 'is'} known of {count}.", *found]
    if unknown:
        lines.append(f"NOT LOOKED UP: {', '.join(unknown)}")
    return int(bool(found)), "\n".join(lines)


def main(lock: str) -> int:
    """Run pip-audit on a lock and print its verdict."""
    command = [sys.executable, "-m", "pip_audit", "-r", lock, "--disable-pip", "--require-hashes"]
    command += ["--progress-spinner", "off", "--format", "json"]
    # Its exit code 1 is for a bad lock, a silent index and a known vulnerability; a dry run asks no index.
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True)
    if dry.returncode:
        print(dry.stderr.strip(), file=sys.stderr)
        return 1
    said = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(said.stdout)["dependencies"]
    except json.JSONDecodeError:
        reason = textwrap.shorten((said.stderr.strip().splitlines() or ["no reason was given"])[-1], 120)
        print(f"Vulnerabilities: NOT LOOKED UP, the index does not answer ({reason}).")
        return 0
    code, text = verdict(packages)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
