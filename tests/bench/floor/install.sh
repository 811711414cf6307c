# On a node, behind the functions that floor.py rendered for it: from bare to a healthy controller.
set -eu
umask 027
work=/run/floor
mkdir -m 0700 -p $work/pki

mark() { echo "@ $HOSTNAME $1 $EPOCHREALTIME"; }

fetch() { # name, directory, source, published sums, members of the archive
  local name=$1 directory=$2 source=$3 sums=$4 scratch=$2/.fetch-$1 found line
  shift 4
  mkdir -p "$scratch"
  curl -sSf -o "$scratch/file" "$source" -o "$scratch/sums" "$sums"
  found=$(openssl dgst -sha256 -r "$scratch/file")
  found=${found%% *}
  read -r line < <(grep -E "^$found(  ?\*?${source##*/})?$" "$scratch/sums") || { echo "$source: wrong checksum" >&2; exit 1; }
  if [ $# -gt 0 ]; then
    tar -xzf "$scratch/file" -C "$scratch" --no-same-owner "$@"
    mv "${@/#/$scratch/}" "$directory/"
    found=$(openssl dgst -sha256 -r "$directory/$name")
    found=${found%% *}
  else
    mv "$scratch/file" "$directory/$name"
    chmod 0755 "$directory/$name"
  fi
  rm -r "$scratch"
  echo "$found" > "$work/$name.sha256"
}

until_ok() { # command: ask until it says yes
  local end=$((SECONDS + 180))
  until "$@"; do
    ((SECONDS < end)) || { echo "$HOSTNAME: this never succeeded: $*" >&2; exit 1; }
    sleep 0.1
  done
}

# What comes first is needed first; the rest is fetched while etcd and the API server start.
mark start
(umask 022; downloads_first) & first=$!
accounts
directories
units
systemctl daemon-reload
tar -x -C $work/pki
mark pki
wait $first
mark binaries-first
write_etcd
systemctl start --no-block etcd
write_kube_apiserver
systemctl start --no-block kube-apiserver
(umask 022; downloads_rest; links)
mark binaries
write_kube_controller_manager
write_kube_scheduler
until_ok probe_etcd
mark etcd
until_ok probe_kube_apiserver
mark apiserver
# Not earlier: they would compete for the processor with what they wait for.
systemctl start --no-block kube-controller-manager kube-scheduler
objects
mark objects
until_ok probe_kube_controller_manager
until_ok probe_kube_scheduler
mark controllers
until_ok leases
good
rm -r $work
mark leases
