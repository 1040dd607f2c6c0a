#!/bin/bash
# Run a command of convzoo under a launcher, and exit with 75 where its run was stopped by a signal and saved.
#
#   cluster/run.sh RUN_FOLDER torchrun ... -m convzoo train RECIPE --out RUN_FOLDER
#
# torchrun's own exit code is 1 whatever its ranks' were; the run folder's `interrupted` file says which 1 it is. One that
# an earlier start left says nothing, so its text (step and time) is compared. Signals go on to the launcher.
folder=$1
shift
before=$(cat "$folder/interrupted" 2>/dev/null)
"$@" &
child=$!
trap 'kill -TERM $child 2>/dev/null' TERM INT USR1
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # else it was the signal that ended the waiting
done
after=$(cat "$folder/interrupted" 2>/dev/null)
if [ "$code" -ne 0 ] && [ -n "$after" ] && [ "$after" != "$before" ]; then
    exit 75
fi
exit "$code"
