#!/bin/sh
# Before the packages come in: what their scripts read while they are set up. "$1" is the new root.
set -eu
root=$1
install -d "$root/etc/initramfs-tools/conf.d" "$root/etc/default/grub.d"

# Disks of QEMU, of the large clouds and of Xen; NVMe and ext4 are built into the kernel. Everything else would only
# make the initramfs slower to unpack.
printf '%s\n' 'MODULES=list' 'COMPRESS=zstd' >"$root/etc/initramfs-tools/conf.d/kiln"
printf '%s\n' virtio_pci virtio_mmio virtio_blk virtio_scsi sd_mod xen-blkfront hv_vmbus hv_storvsc nvme ext4 \
    >"$root/etc/initramfs-tools/modules"

cat >"$root/etc/default/grub.d/50-kiln.cfg" <<'END'
GRUB_TIMEOUT=1
GRUB_RECORDFAIL_TIMEOUT=1
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
END
