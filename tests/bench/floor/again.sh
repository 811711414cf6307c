# The second run, from the operator's machine: every node compares itself with its manifest and asks its own health.
set -eu
cd "$1"
mapfile -t nodes < nodes
for node in "${nodes[@]}"; do
  ./ssh "$node" bash -c "$(cat "$node/node.sh" noop.sh)" < "$node/manifest" &
  running+=($!)
done
for process in "${running[@]}"; do
  wait "$process" || { echo "a node is not as its manifest says" >&2; exit 1; }
done
