#!/bin/bash
# root-lines.sh: how many lines of Rust run as root on Linux: src/helper without tests, blank lines, lines that are only a comment, and
# what only macOS runs.
# A file's tests begin at its `mod tests {` and end the file, or are in tests.rs; firewall/hostile.rs and its folder are all test.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
find src/helper -name '*.rs' ! -path '*/hostile*' ! -path '*/macos*' ! -path '*/pf*' ! -name tests.rs -exec awk '
  FNR == 1 { tests = 0 }
  /^mod tests \{/ { tests = 1 }
  !tests && !/^[ \t]*(\/\/|#\[cfg\(test\)\]$|$)/ { lines++ }
  END { print lines }' {} +
