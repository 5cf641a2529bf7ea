#!/bin/bash
# Tells Ray when this spot machine of AWS is about to be taken away: spot-notice.sh HOST:PORT of the head's GCS.
#
# AWS says so two minutes ahead, at the metadata service of the machine alone, and no part of Ray 2.60 asks there. Told as
# a preemption, a training saves at once, goes on elsewhere, and counts no failure. Runs until then, once on a machine;
# on a machine that is no spot machine the answer is always 404.
set -u
export RAY_ADDRESS=$1
exec 9>/tmp/spot-notice.lock
flock --nonblock 9 || exit 0 # `ray up` starts it again

metadata=http://169.254.169.254/latest
while sleep 5; do
  session=$(curl --silent --max-time 4 --request PUT --header "X-aws-ec2-metadata-token-ttl-seconds: 60" \
    "$metadata/api/token") || continue
  curl --silent --fail --max-time 4 --header "X-aws-ec2-metadata-token: $session" \
    "$metadata/meta-data/spot/instance-action" || continue
  # 100 of the 120 s: the rest went by until here.
  ray drain-node --address "$RAY_ADDRESS" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "AWS takes this spot machine away" --deadline-remaining-seconds 100 && exit 0
done
