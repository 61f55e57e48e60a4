#!/bin/sh
# After the packages are in: configuration, GRUB, and away with all that is of this build only. "$1" is the new root.
# Leaves what kiln needs beside the tree in /.kiln, which does not become part of the file system.
set -eu
root=$1
export LC_ALL=C

# One name for this set of packages: the same packages get the same identifiers, hence the same bytes.
out=$root/.kiln
mkdir "$out"
chroot "$root" dpkg-query -W -f '${Package}:${Architecture}=${Version}\n' | sort >"$out/packages"
name=$( (echo "$KILN_RECIPE"; cat "$out/packages") | sha256sum | cut -c1-64)
uuid() { # of the n-th 16 digits of the name
    printf '%s' "$name-$1" | sha256sum | sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-4\3-8\4-\5/'
}
root_uuid=$(uuid root)
esp_id=$(printf '%s' "$name-esp" | sha256sum | cut -c1-8 | tr a-f A-F | sed -E 's/(....)(....)/\1-\2/')
cat >"$out/ids" <<END
disk=$(uuid disk)
root=$root_uuid
root-partition=$(uuid root-partition)
esp-partition=$(uuid esp-partition)
bios-partition=$(uuid bios-partition)
hash-seed=$(uuid hash-seed)
esp=$esp_id
END

cat >"$root/etc/fstab" <<END
UUID=$root_uuid / ext4 errors=remount-ro 0 1
UUID=$esp_id /boot/efi vfat umask=0077,nofail,noauto,x-systemd.automount,x-systemd.idle-timeout=60 0 0
END
install -d "$root/boot/efi"

# Network: DHCP wherever cloud-init has rendered nothing of its own (its files sort before this one).
cat >"$root/etc/systemd/network/80-dhcp.network" <<'END'
[Match]
Name=en* eth*

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
END
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
rm -f "$root/etc/hostname"
ln -snf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# SSH: keys only, unless cloud-init is told otherwise; host keys made on the first boot by whoever comes first.
printf 'PasswordAuthentication no\n' >"$root/etc/ssh/sshd_config.d/60-keys-only.conf"
printf '%s' "$KILN_HOST_KEYS_UNIT" >"$root/etc/systemd/system/ssh-host-keys.service"

# Without this cloud-init wants to generate a locale, for which the image has no tools, and reports an error.
printf 'locale: false\n' >"$root/etc/cloud/cloud.cfg.d/90-locale.cfg"

# An image is replaced, not patched in place, and apt must not hold its lock while an image is baked.
# The others look after LVM snapshots and GRUB's failure flag, neither of which the image has; they cost seconds at boot.
chroot "$root" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service grub-common.service
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service ssh-host-keys.service

# GRUB, from the image's own packages. The signed GRUB for UEFI looks for /EFI/debian/grub.cfg on its partition.
# Debian's `grub-cloud-amd64` writes both boot blocks again when GRUB is upgraded, once this flag exists.
touch "$root/etc/grub.d/enable_cloud"
install -d "$root/boot/grub/i386-pc"
cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc"
printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$root_uuid" >"$out/load.cfg"
chroot "$root" grub-mkimage -O i386-pc -c /.kiln/load.cfg -p /boot/grub -o /boot/grub/i386-pc/core.img \
    biosdisk part_gpt ext2 search_fs_uuid normal configfile linux minicmd test echo serial terminal
chroot "$root" grub-editenv /boot/grub/grubenv create
cp "$root/boot/grub/i386-pc/core.img" "$root/usr/lib/grub/i386-pc/boot.img" "$out"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$root/boot/grub/i386-pc"
cp "$root/usr/lib/shim/shimx64.efi.signed" "$out/shimx64.efi"
cp "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$out/grubx64.efi"
cat >"$out/efi-grub.cfg" <<END
search.fs_uuid $root_uuid root
set prefix=(\$root)'/boot/grub'
configfile \$prefix/grub.cfg
END
# Until the first update-grub writes its own: always the newest kernel, by the links that its package keeps.
cat >"$root/boot/grub/grub.cfg" <<END
set timeout=1
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
menuentry 'Debian GNU/Linux' {
    search --no-floppy --fs-uuid --set=root $root_uuid
    linux /vmlinuz root=UUID=$root_uuid ro console=tty0 console=ttyS0,115200
    initrd /initrd.img
}
END
rm -f "$root/vmlinuz.old" "$root/initrd.img.old"
cp "$root/vmlinuz" "$out/vmlinuz"
cp "$root/initrd.img" "$out/initrd.img"

# What only this build, this machine or this day knows. An empty machine-id is filled at boot without the units of a
# "first boot", which would switch every unit's preset on again.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/*- "$root/etc/.pwd.lock"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/ldconfig/* "$root"/var/cache/debconf/*-old
rm -f "$root"/var/lib/dpkg/*-old "$root"/var/lib/systemd/random-seed "$root"/var/lib/systemd/credential.secret
rm -rf "$root"/var/tmp/*
# Bytecode that Python kept of the compiler itself while it ran: its bytes depend on what ran before.
rm -rf "$root/usr/share/python3/debpython/__pycache__"
find "$root/var/log" -type f -delete
# Caches that systemd would otherwise make again at the first boot are as new as /usr.
touch "$root/etc/.updated" "$root/var/.updated"
# The day an account was made is the day of the build; the recipe's own day says as much.
day=$((SOURCE_DATE_EPOCH / 86400))
sed -i -E "s/^(([^:]*:){2})[0-9]+:/\1$day:/" "$root/etc/shadow"
