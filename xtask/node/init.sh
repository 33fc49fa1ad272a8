#!/bin/bash
# Process 1 of the node's namespaces: makes them fit to live in, then reaps what is left behind.
# Whoever ends it ends everything in the node.
set -euo pipefail
# -n: mount's own notes under /run belong to the machine until /run is covered.
mount -n --make-rshared /
# What the container tools keep outside the run folder must not reach the machine.
for folder in /run {{covered}}; do mount -n -t tmpfs millstream "$folder"; done
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
touch "{{run}}/namespaces-ready"
sleep infinity &
while :; do wait -n || true; done
