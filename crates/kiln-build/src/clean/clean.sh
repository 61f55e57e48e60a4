# The last thing that runs in a guest before it is shut down and sealed: takes away what belongs to this one machine and
# this one build, so that every clone starts as itself. Runs as root in any POSIX shell, busybox included.
#
# Programs are few: under emulation, starting one is what costs most here.
#
# Order matters. Whoever would write again, now or at shutdown, is stopped first; files go next; free space comes
# last. Whether the result is clean is not decided here but from outside, on the finished disk.
#
# KILN_LOGIN_KEY   the public key this bake logs in with (type and base64), to be taken out of every authorized_keys
# KILN_HOST_NAME   the host name the guest had during the bake
# KILN_HOST_KEYS_UNIT   the systemd unit that makes SSH host keys on the first boot
# Exit status 20: the guest is not finished, the reason is on stderr.
set -u
export LC_ALL=C
unset HISTFILE

unfinished() {
    echo "$*" >&2
    exit 20
}

# --- Nothing may still be installing -----------------------------------------------------------------------------
for name in /proc/[0-9]*/comm; do
    read -r comm 2>/dev/null <"$name" || continue
    case $comm in
    apt | apt-get | aptitude | dpkg | dpkg-deb | dnf | dnf5 | microdnf | yum | rpm | apk | zypper)
        pid=${name#/proc/}
        unfinished "\`$comm\` (process ${pid%/comm}) is still running: a step left it in the background"
        ;;
    esac
done
if command -v dpkg >/dev/null 2>&1; then
    audit=$(dpkg --audit 2>&1) || unfinished "dpkg --audit failed: $audit"
    [ -z "$audit" ] || unfinished "packages are half installed (dpkg --audit): $audit"
fi
[ ! -e /usr/sbin/policy-rc.d ] || unfinished "/usr/sbin/policy-rc.d is left: no service would start when installed"

# --- Whoever would write again is stopped ------------------------------------------------------------------------
if [ -d /run/systemd/system ]; then
    # All but the timers write when they are stopped: better now than at shutdown.
    systemctl stop '*.timer' systemd-random-seed.service systemd-update-utmp.service syslog.socket 2>/dev/null
    # These would write leases when they are stopped, and stopping them now would cut the line.
    active=$(systemctl --plain --no-legend --state=active list-units networking.service NetworkManager.service 2>/dev/null |
        cut -d ' ' -f 1)
    for unit in $active; do
        mkdir -p "/run/systemd/system/$unit.d"
        printf '[Service]\nExecStop=\nKillSignal=SIGKILL\n' >"/run/systemd/system/$unit.d/sealing.conf"
    done
    [ -z "$active" ] || systemctl daemon-reload
    # Services with an open log would add lines on their way down.
    writers=$(find /proc/[0-9]*/fd -lname '/var/log/*' 2>/dev/null | sed 's|^/proc/||; s|/.*||' | sort -u)
    for pid in $writers; do
        unit=$(sed -n 's|.*/\([^/]*\.service\)$|\1|p' "/proc/$pid/cgroup" 2>/dev/null | head -n 1)
        case $unit in
        '' | ssh.service | sshd.service | ssh@* | sshd@* | systemd-journald.service | user@*) ;;
        *) systemctl stop "$unit" 2>/dev/null ;;
        esac
    done
    # The journal goes on in memory.
    journalctl --relinquish-var 2>/dev/null
else
    for service in syslog rsyslog crond; do
        rc-service --quiet --ifstarted "$service" stop 2>/dev/null
    done
fi
swapoff -a 2>/dev/null

# --- Keys are made anew on the first boot ------------------------------------------------------------------------
# Images with cloud-init make host keys through it, unless it finds no data source; then sshd would not start.
unit_directory=/etc/systemd/system
if [ -d /run/systemd/system ] && [ -x /usr/sbin/sshd ] && [ -x /usr/bin/ssh-keygen ] &&
    ! grep -qs -e 'ssh-keygen -A' -e 'sshd-keygen' "$unit_directory"/*.service /usr/lib/systemd/system/*.service; then
    printf '%s' "$KILN_HOST_KEYS_UNIT" >"$unit_directory/ssh-host-keys.service"
    systemctl --quiet enable ssh-host-keys.service
fi
rm -f /etc/ssh/ssh_host_* /etc/dropbear/*_host_key
# Debian's `ssl-cert` makes a key when it is installed: one for all clones.
if [ -e /etc/ssl/private/ssl-cert-snakeoil.key ] && [ -d /run/systemd/system ] && [ -x /usr/sbin/make-ssl-cert ]; then
    cat >"$unit_directory/ssl-cert-snakeoil.service" <<'END'
[Unit]
Description=Self-signed certificate of this machine
Before=network.target
ConditionPathExists=!/etc/ssl/private/ssl-cert-snakeoil.key

[Service]
Type=oneshot
ExecStart=/usr/sbin/make-ssl-cert generate-default-snakeoil --force-overwrite

[Install]
WantedBy=multi-user.target
END
    systemctl --quiet enable ssl-cert-snakeoil.service
    if [ -e /etc/ssl/certs/ssl-cert-snakeoil.pem ]; then
        hash=$(openssl x509 -noout -hash -in /etc/ssl/certs/ssl-cert-snakeoil.pem 2>/dev/null)
        [ -z "$hash" ] || rm -f "/etc/ssl/certs/$hash.0"
    fi
    rm -f /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem
fi

# --- Users -------------------------------------------------------------------------------------------------------
cut -d : -f 6 /etc/passwd | sort -u | while read -r home; do
    case $home in
    /root | /root/* | /home/?* | /var/?* | /srv/?* | /opt/?*) [ -d "$home" ] || continue ;;
    *) continue ;;
    esac
    (cd "$home" && rm -f .ash_history .bash_history .lesshst .mysql_history .node_repl_history .psql_history \
        .python_history .rediscli_history .sh_history .sqlite_history .viminfo .wget-hsts .zhistory .zsh_history)
    # The key of this bake goes; a key that a step put there stays, and the hygiene check tells.
    keys=$home/.ssh/authorized_keys
    if [ -n "${KILN_LOGIN_KEY-}" ] && [ -f "$keys" ] && grep -qF -e "$KILN_LOGIN_KEY" "$keys"; then
        left=$(grep -vF -e "$KILN_LOGIN_KEY" "$keys")
        if [ -n "$left" ]; then
            printf '%s\n' "$left" >"$keys"
        else
            rm -f "$keys"
            rmdir "$home/.ssh" 2>/dev/null
        fi
    fi
done
rm -rf /root/.ssh /root/.ansible /root/.cache \
    /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/sudoers.d/90-cloud-init-users

# --- cloud-init's state and what it wrote ------------------------------------------------------------------------
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem /var/lib/cloud/data /var/lib/cloud/handlers \
    /var/lib/cloud/seed/* /var/log/cloud-init*.log
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-* \
    /etc/ssh/sshd_config.d/50-cloud-init.conf /etc/NetworkManager/system-connections/cloud-init-* \
    /etc/NetworkManager/conf.d/*cloud-init*
if grep -qs 'comment=cloudconfig' /etc/fstab; then
    sed -i '/comment=cloudconfig/d' /etc/fstab
fi

# --- The machine's own -------------------------------------------------------------------------------------------
rm -rf /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/urandom/random-seed /var/lib/seedrng \
    /boot/efi/loader/random-seed /efi/loader/random-seed /boot/loader/random-seed \
    /etc/udev/rules.d/70-persistent-net.rules /etc/machine-info /etc/dhcpcd.duid
for leases in /var/lib/dhcp /var/lib/dhclient /var/lib/dhcpcd /var/lib/NetworkManager /var/lib/systemd/network; do
    [ ! -d "$leases" ] || find "$leases" -xdev -type f -delete
done
if [ -n "${KILN_HOST_NAME-}" ] && [ -f /etc/hostname ] && [ "$(cat /etc/hostname)" = "$KILN_HOST_NAME" ]; then
    : >/etc/hostname
fi

# --- What was fetched, logged, dumped ----------------------------------------------------------------------------
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/* \
    /var/cache/debconf/*-old /var/lib/dpkg/*-old \
    /var/cache/dnf/* /var/cache/libdnf5/* /var/cache/yum/* /var/cache/apk/* /etc/apk/cache/* \
    /var/crash/* /var/lib/systemd/coredump/* /var/lib/systemd/pstore/* /var/spool/abrt/* /var/lib/apport/coredump/* \
    /var/log/journal/* /var/log/installer /var/log/anaconda
for swap in /swapfile /swap.img; do
    # One that the image is meant to have stays.
    [ ! -f "$swap" ] || grep -qs "^$swap[[:space:]]" /etc/fstab || rm -f "$swap"
done
find /var/log -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.old' -o -name '*.[0-9]' \
    -o -name '*-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]' \) -delete
find /var/log -xdev -type f -size +0 | while read -r log; do
    : >"$log"
done
# What still writes login records at shutdown writes them nowhere.
for log in /var/log/wtmp /var/log/btmp /var/log/lastlog; do
    [ ! -f "$log" ] || mount --bind /dev/null "$log" 2>/dev/null || true
done
find /tmp /var/tmp -xdev -mindepth 1 -delete 2>/dev/null
chmod 1777 /tmp /var/tmp

# --- The name of the machine, last: programs above still wanted it -----------------------------------------------
if [ -e /etc/machine-id ]; then
    : >/etc/machine-id
fi
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id

# --- Free space --------------------------------------------------------------------------------------------------
# Of ext4 it is left out while sealing, which also finds what is freed after this. Others are trimmed here.
# Blocks are free for trimming only once the journal has committed their release.
sync
while read -r device mount kind _; do
    case $device:$kind in
    *:ext4) ;;
    /dev/*) fstrim "$mount" || echo "$mount was not trimmed: deleted data may stay in its free space" >&2 ;;
    esac
done </proc/mounts
sync
exit 0
