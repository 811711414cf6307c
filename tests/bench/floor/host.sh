# The whole rollout, from the operator's machine. $1: the kit that floor.py made. Each node is asked once, over one
# connection (./ssh NODE COMMAND); its certificates follow on standard input as soon as the master has made them.
set -eu
cd "$1"
mapfile -t nodes < nodes
for node in "${nodes[@]}"; do
  mkfifo "$node/pki"
  ./ssh "$node" bash -c "$(cat "$node/node.sh" install.sh)" < <(exec cat "$node/pki") &
  running+=($!)
done
./ssh salt-master bash -c "$(cat pki.sh)"
for node in "${nodes[@]}"; do
  ./ssh salt-master tar -C "$(cat "$node/share")" -c . > "$node/pki" &
done
for process in "${running[@]}"; do
  wait "$process"
done
