# Run in a guest that came back from a checkpoint, before anything else: is it the one that was saved? Then gives it the
# time, fresh randomness, and ends the logins whose connections broke.
set -u

[ "$(cat /proc/sys/kernel/random/boot_id)" = "$KILN_BOOT_ID" ] || { echo "its boot id is another" >&2; exit 10; }
[ "$(cat "$KILN_NONCE_FILE" 2>/dev/null)" = "$KILN_NONCE" ] || { echo "its nonce is another" >&2; exit 11; }
rm -f "$KILN_NONCE_FILE"

date -u -s "@$KILN_NOW" >/dev/null || { echo "its clock cannot be set" >&2; exit 12; }

# Two guests from one checkpoint must not draw the same numbers. Mixing in is not enough: the kernel's generator takes it
# up only at its next reseeding, which perl (essential in Debian) can ask for: RNDADDENTROPY, then RNDRESEEDCRNG.
printf %s "$KILN_ENTROPY" > /dev/urandom
if command -v perl >/dev/null; then
    perl -e 'open(my $r, ">", "/dev/urandom") or die; my $e = pack("H*", $ENV{KILN_ENTROPY});
        ioctl($r, 0x40085203, pack("ii", 8 * length $e, length $e) . $e) or die "entropy: $!";
        my $none = 0; ioctl($r, 0x5207, $none) or die "reseed: $!";' || exit 13
elif [ -r /dev/hwrng ]; then
    # Without perl: the kernel reseeds itself from its hardware source once a minute.
    dd if=/dev/hwrng of=/dev/urandom bs=64 count=1 2>/dev/null
fi

# Logins from before the checkpoint: sessions of sshd that are neither its listener nor above this script. Without a fork
# for each process: in an emulated guest a fork takes its time.
mine=" $$ "
pid=$$
while [ "$pid" -gt 1 ]; do
    read -r _ _ _ pid _ < "/proc/$pid/stat" || break
    mine="$mine$pid "
done
for stat in /proc/[0-9]*/stat; do
    { read -r process name _ parent _ < "$stat"; } 2>/dev/null || continue
    case $name in "(sshd)" | "(sshd-session)") ;; *) continue ;; esac
    case $mine in *" $process "*) continue ;; esac
    [ "$parent" = 1 ] || kill -9 "$process" 2>/dev/null
done
exit 0
