# A guest in namespaces of its own: what it writes goes into memory, but for /srv; when it powers off, all of it is gone.
set -eu
directory=$1 port=$2 srv=$3
mount -t tmpfs tmpfs "$directory/mnt"
mkdir "$directory/mnt/upper" "$directory/mnt/work" "$directory/mnt/root"
root=$directory/mnt/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$directory/mnt/upper,workdir=$directory/mnt/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/sshd" "$root/run/keys" "$root/srv"
cp "$directory/host_key" "$directory/authorized_keys" "$root/run/keys/"
mount --bind "$srv" "$root/srv"
# Container images have one; a machine has not.
rm -f "$root/usr/sbin/policy-rc.d"
for program in systemctl poweroff; do
    rm -f "$root/usr/bin/$program" "$root/usr/sbin/$program"
    printf '#!/bin/sh\nkill 1\n' >"$root/usr/sbin/$program"
    chmod 755 "$root/usr/sbin/$program"
done
# Nothing that reaches beyond its namespaces.
exec chroot "$root" setpriv --bounding-set -sys_admin,-sys_boot,-sys_module,-sys_rawio,-sys_time \
    /usr/sbin/sshd -D -e -f /dev/null -o "ListenAddress=127.0.0.1:$port" -o HostKey=/run/keys/host_key \
    -o AuthorizedKeysFile=/run/keys/authorized_keys -o PidFile=none -o StrictModes=no -o UsePAM=no -o UseDNS=no \
    -o PermitRootLogin=yes -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no
