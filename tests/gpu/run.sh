#!/bin/sh
# What to run on a machine with a GPU: the checks for a card, then the clock of profile gpu, then one CSV of
# its rows. Such a machine may have no git, so the rows are told which commit made them:
#
#     VTC_COMMIT=$(git rev-parse --short HEAD) sh tests/gpu/run.sh OUT.csv
#
# Stopped at any moment, the same command goes on: cases that are there are not clocked again.
# Then, in the checkout: vtc record --profile gpu --from OUT.csv
set -eu
out=${1:?"which CSV shall hold the rows?  sh tests/gpu/run.sh OUT.csv"}
: "${VTC_COMMIT:?"set it to the commit of these files"}"
python=${PYTHON:-python}
export VTC_COMMIT

status=0
"$python" -m pytest tests/gpu -ra || status=$?  # a card is scarce: the clock runs all the same
"$python" -m vtc bench --profile gpu || status=$?
"$python" -m vtc record --profile gpu --csv "$out"
exit "$status"
