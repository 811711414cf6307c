# On the master: every CA first, then every leaf, each by one openssl, all at once. The rows are called below.
set -eu
umask 077

request() { # file without ending, days, subject, more arguments
  local file=$1 days=$2 subject=$3
  shift 3
  openssl req -x509 -config request.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" \
    -subj "$subject" -keyout "$file.key" -out "$file.crt" "$@" 2> "$file.err" || { cat "$file.err" >&2; exit 1; }
  rm "$file.err"
}

authority() { # name, days, subject
  request "authorities/$1-ca" "$2" "$3" -addext basicConstraints=critical,CA:TRUE \
    -addext keyUsage=critical,digitalSignature,keyCertSign,cRLSign -addext subjectKeyIdentifier=hash &
  running+=($!)
}

leaf() { # file without ending, authority, days, subject, usage, subject alternative names or nothing
  request "$1" "$3" "$4" -CA "authorities/$2-ca.crt" -CAkey "authorities/$2-ca.key" \
    -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature,keyEncipherment \
    -addext "extendedKeyUsage=$5" -addext authorityKeyIdentifier=keyid ${6:+-addext "subjectAltName=$6"} &
  running+=($!)
}

all() { # wait for what runs; the first failure ends the script
  for process in "${running[@]}"; do
    wait "$process"
  done
  running=()
}
