# Gives the root file system the whole disk, when the disk is larger than the image was. Run as root in the guest.
# The root must be the last partition. Says what it did on stdout; nothing to do is no output.
set -eu

# The mount whose target is `/`: device number, file system, device.
line=$(awk '$5 == "/" { at = 7; while ($at != "-") at++; print $3, $(at + 1), $(at + 2) }' /proc/self/mountinfo | tail -n 1)
number=${line%% *} rest=${line#* }
type=${rest%% *} source=${rest#* }
case $number in 0:*) # btrfs and others show a number of their own
    number=$(printf '%d:%d' "0x$(stat -c %t "$source")" "0x$(stat -c %T "$source")") ;;
esac
place=$(readlink -f "/sys/dev/block/$number")
[ -f "$place/partition" ] || { echo "/ is not on a partition of a disk: left as it is"; exit 0; }
partition=/dev/${place##*/}
place_of_disk=${place%/*}
disk=/dev/${place_of_disk##*/}
index=$(cat "$place/partition")
start=$(cat "$place/start") length=$(cat "$place/size") all=$(cat "$place_of_disk/size")

for other in "$place_of_disk"/*/start; do
    if [ "$(cat "$other")" -gt "$start" ]; then
        echo "/ is not the last partition of $disk: left as it is"
        exit 0
    fi
done

# Less than 4 MiB behind the partition is the table's second copy and alignment.
[ $((all - start - length)) -ge 8192 ] || exit 0
if command -v sfdisk >/dev/null && command -v partx >/dev/null; then
    # Without the old last usable sector sfdisk takes the disk's real end, and writes the second copy of the table there.
    said=$(sfdisk --dump "$disk" 2>/dev/null \
        | sed -e '/^last-lba:/d' -e "s|^\($partition :.*\), *size= *[0-9]*|\1|" \
        | sfdisk --quiet --force --no-reread --no-tell-kernel "$disk" 2>&1) || { echo "$said" >&2; exit 1; }
    partx --update --nr "$index" "$disk"
elif command -v growpart >/dev/null; then
    growpart "$disk" "$index" >/dev/null
else
    echo "neither sfdisk nor growpart is in this image, so / cannot use the whole disk" >&2
    exit 1
fi

said=
case $type in
ext2 | ext3 | ext4) said=$(resize2fs "$partition" 2>&1) || { echo "$said" >&2; exit 1; } ;;
xfs) xfs_growfs / >/dev/null ;;
btrfs) btrfs filesystem resize max / >/dev/null ;;
*) echo "kiln does not know how to enlarge $type: left as it is"; exit 0 ;;
esac
echo "/ grew from $((length / 2048)) MiB to $(($(cat "$place/size") / 2048)) MiB"
