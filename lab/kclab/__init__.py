"""The lab: bare Debian nodes, a salt-master and a mirror of real binaries on one machine."""
