//! The text that the guest's shell reads: pure functions, nothing pasted in without quotes.
//!
//! The shell is any POSIX `sh` (dash, bash, busybox). Programs used: mkdir, rm, tar, cp, mv, base64, setsid, cat, sleep.

#![expect(
    clippy::format_push_string,
    reason = "shell text reads best as whole lines; a `write!` adds a `let _` to each"
)]

use std::collections::BTreeMap;

use super::tar;
use crate::{
    guest::{Bundle, Command, Content, Entry, GuestError},
    random,
};

/// Uploads up to this size travel inside the shell's text.
pub(super) const INLINE: u64 = 64 << 10;

/// One shell word that means exactly `text`. The caller has refused NUL.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The first thing a new shell reads: makes the private directory, and reports the kernel's boot id after `nonce`.
pub(super) fn greeting(private: &str, nonce: &str) -> String {
    let private = quote(private);
    format!(
        "umask 077; unset HISTFILE ENV\n\
         [ -d {private} ] || mkdir -p -m 700 {private} || exit 1\n\
         k_boot=unknown; IFS= read -r k_boot </proc/sys/kernel/random/boot_id\n\
         printf '{nonce} %s\\n' \"$k_boot\"; printf '{nonce} 0\\n' >&2\n"
    )
}

/// The two random words of a request. The marker stands in no file and no argument, so nothing in the guest prints it by
/// chance; the name stands in paths, which every error message quotes.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub(super) marker: String,
    pub(super) name: String,
}

impl Words {
    pub(super) fn new() -> Self {
        Self { marker: random::nonce(), name: random::nonce()[..12].to_owned() }
    }

    /// Prints the marker and a status on both streams.
    fn mark(&self, status: &str) -> String {
        let Self { marker, .. } = self;
        format!("printf '{marker} %s\\n' {status}; printf '{marker} %s\\n' {status} >&2\n")
    }
}

/// The two files of one shell, used again by each of its commands: removing them each time would cost a process.
#[derive(Debug, Clone)]
pub(super) struct Files {
    script: String,
    session: String,
}

impl Files {
    pub(super) fn new(private: &str) -> Self {
        let name = &random::nonce()[..12];
        Self { script: format!("{private}/{name}.sh"), session: format!("{private}/{name}.session") }
    }
}

/// A command as text: files laid down, the script run in its own session, everything removed, both streams closed by
/// the line `<nonce> <status>`.
///
/// With `laid`, the bundle's files are there already and are only removed.
pub(super) fn request(files: &Files, words: &Words, command: &Command, laid: bool) -> Result<String, GuestError> {
    let (file, session) = (quote(&files.script), quote(&files.session));
    // The first `wait` is for the cleaning of the command before, which may concern the same directory.
    let mut text = String::from("{\nwait\nk_rc=0\n");
    let mut clean = String::new();
    if let Some(bundle) = &command.bundle {
        if !laid {
            text.push_str(&lay_down(bundle, &words.name)?);
        }
        clean = format!("rm -rf -- {} &\n", quote(&bundle.directory));
    }
    text.push_str(&lay_script(&command.script, &file, &words.name)?);
    text.push_str("if [ \"$k_rc\" = 0 ]; then\n(\numask 022\n");
    let secrets = command.secrets.iter().map(|(name, value)| (name, value.reveal()));
    for (name, value) in command.env.iter().map(|(name, value)| (name, value.as_str())).chain(secrets) {
        sound_variable(name, value)?;
        text.push_str(&format!("{name}={}; export {name}\n", quote(value)));
    }
    if let Some(directory) = &command.directory {
        text.push_str(&format!("cd -- {} || exit 126\n", quote(sound("directory", directory)?)));
    }
    // A background job has no controlling terminal and is no group leader, so setsid keeps the pid of `$!`.
    text.push_str(&format!("exec setsid sh {file}\n) </dev/null &\n"));
    text.push_str(&format!("k_pid=$!; echo \"$k_pid\" >{session}; wait \"$k_pid\"; k_rc=$?\nfi\n"));
    text.push_str(&format!("{clean}: >{file}; : >{session}\n"));
    Ok(text + &words.mark("\"$k_rc\"") + "}\n")
}

/// The script's file. Plain text goes through the shell's own `printf`, which costs no process; any other through base64.
fn lay_script(script: &str, file: &str, nonce: &str) -> Result<String, GuestError> {
    let script = sound("script", script)?;
    Ok(if plain(script.as_bytes()) {
        format!("printf '%s' {} >{file} || k_rc=prepare\n", quote(script))
    } else {
        decode(script.as_bytes(), nonce, &format!(">{file} || k_rc=prepare"))
    })
}

/// Makes the bundle's directory. A few small text files are written by the shell itself, anything else by tar.
fn lay_down(bundle: &Bundle, nonce: &str) -> Result<String, GuestError> {
    tar::check(&bundle.entries)?;
    let directory = quote(sound("directory", &bundle.directory)?);
    // Only what an earlier, broken command left; in the usual case no process is started for it.
    let mut text =
        format!("[ ! -e {directory} ] || rm -rf -- {directory}; mkdir -p -m 700 -- {directory} || k_rc=prepare\n");
    if let Some(written) = written_by_the_shell(&bundle.entries, &directory) {
        return Ok(text + &written);
    }
    let unpack = format!("| tar -xpof - -C {directory} && rm -- {directory}/{nonce} || k_rc=prepare");
    text.push_str(&decode(&packed(&bundle.entries, nonce)?, nonce, &unpack));
    Ok(text)
}

/// Text for directories and a few small text files without starting a process for each; `None` where tar must do it.
fn written_by_the_shell(entries: &[Entry], directory: &str) -> Option<String> {
    let (mut directories, mut files) = (String::new(), String::new());
    let mut modes = BTreeMap::<u32, String>::new();
    for Entry { path, mode, content } in entries {
        let place = format!("{directory}/{}", quote(path.to_str().filter(|path| plain(path.as_bytes()))?));
        match content {
            Content::Directory if *mode == 0o755 => directories.push_str(&format!(" {place}")),
            Content::Bytes(bytes) if plain(bytes) => {
                let text = std::str::from_utf8(bytes).ok()?;
                let umask = if mode.trailing_zeros() >= 6 { "077" } else { "022" };
                files.push_str(&format!("umask {umask}; printf '%s' {} >{place} || k_rc=prepare\n", quote(text)));
                if !matches!(mode, 0o600 | 0o644) {
                    modes.entry(*mode).or_default().push_str(&format!(" {place}"));
                }
            }
            Content::Directory | Content::Bytes(_) | Content::File { .. } | Content::Link(_) => return None,
        }
    }
    let mut text = String::from("umask 022\n");
    if !directories.is_empty() {
        text.push_str(&format!("mkdir -p --{directories} || k_rc=prepare\n"));
    }
    text.push_str(&files);
    for (mode, places) in modes {
        text.push_str(&format!("chmod {mode:o}{places} || k_rc=prepare\n"));
    }
    Some(text + "umask 077\n")
}

/// Unpacks a tar stream beneath `directory`. `input` is where the stream comes from. The files appear only once all of
/// them have arrived: they are unpacked beside their place first.
pub(super) fn unpack(directory: &str, words: &Words, input: Unpack<'_>) -> Result<String, GuestError> {
    let target = quote(sound("directory", directory)?);
    let (before, after) = match input {
        Unpack::Stdin => (String::new(), String::new()),
        Unpack::Bundle => (format!("rm -rf -- {target} && mkdir -p -m 700 -- {target} || exit 1\n"), String::new()),
        Unpack::Inline(stream) => ("{\n".to_owned(), decode(stream, &words.name, "| k_unpack") + "}\n"),
    };
    let call = if after.is_empty() { "k_unpack\n" } else { "" };
    let name = &words.name;
    Ok(format!("{before}k_dir={target}; k_name={name}\n{UNPACK}{call}{after}k_rc=$?\n{}", words.mark("\"$k_rc\"")))
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Unpack<'a> {
    Stdin,
    /// From stdin, into a private directory that replaces whatever is there.
    Bundle,
    Inline(&'a [u8]),
}

/// Status 9: the stream was cut. Hard links move the files without copying them; where the file system knows none, they
/// are copied. A new directory is renamed into place as a whole.
const UNPACK: &str = r#"k_unpack() (
    umask 022
    if [ -e "$k_dir" ]; then k_tmp="$k_dir/.kiln-$k_name"; else
        k_up=$(dirname -- "$k_dir"); mkdir -p -- "$k_up" || exit 1; k_tmp="$k_up/.kiln-$k_name"
    fi
    mkdir -m 755 -- "$k_tmp" || exit 1
    trap 'rm -rf -- "$k_tmp"' EXIT
    tar -xpof - -C "$k_tmp" || { [ -e "$k_tmp/$k_name" ] && exit 1; exit 9; }
    [ -e "$k_tmp/$k_name" ] || exit 9
    rm -f -- "$k_tmp/$k_name"
    [ -e "$k_dir" ] || { mv -- "$k_tmp" "$k_dir" && exit 0; }
    umask 000
    cp -dRlf -- "$k_tmp/." "$k_dir/" 2>/dev/null || cp -dRf -- "$k_tmp/." "$k_dir/"
)
"#;

/// The whole stream of `entries`, in memory.
pub(super) fn packed(entries: &[Entry], seal: &str) -> Result<Vec<u8>, GuestError> {
    let mut stream = Vec::new();
    tar::write(entries, seal, &mut |piece, _| {
        stream.extend(piece);
        Ok(())
    })?;
    Ok(stream)
}

/// Runs `base64 -d` with the bytes as its input; `then` follows the program's name.
fn decode(bytes: &[u8], nonce: &str, then: &str) -> String {
    let encoded = openssl::base64::encode_block(bytes);
    let mut text = format!("base64 -d <<'{nonce}' {then}\n");
    for start in (0..encoded.len()).step_by(4096) {
        text.push_str(&encoded[start..encoded.len().min(start + 4096)]);
        text.push('\n');
    }
    text + nonce + "\n"
}

/// Stops everything in the session of the running command, and whatever still descends from it; prints the processes
/// first as `<pid> <parent> <arguments>`.
pub(super) fn kill(files: &Files) -> String {
    format!("k_file={}\n{KILL}", quote(&files.session))
}

const KILL: &str = r#"read -r k_sid <"$k_file" || exit 0
members() {
    set=" $k_sid "; before=
    while [ "$set" != "$before" ]; do
        before=$set
        for dir in /proc/[0-9]*; do
            { IFS= read -r line <"$dir/stat"; } 2>/dev/null || continue
            pid=${dir#/proc/}
            case $set in *" $pid "*) continue ;; esac
            set -f; set -- ${line##*) }; set +f
            [ "$1" = Z ] && continue
            if [ "$4" = "$k_sid" ]; then set="$set$pid "; else
                case $set in *" $2 "*) set="$set$pid " ;; esac
            fi
        done
    done
    kill -0 "$k_sid" 2>/dev/null || set=${set#" $k_sid"}
}
members; first=$set
for pid in $first; do
    { IFS= read -r line <"/proc/$pid/stat"; } 2>/dev/null || continue
    set -f; set -- ${line##*) }; set +f
    printf '%s %s %s\n' "$pid" "$2" "$(tr '\0\n' '  ' <"/proc/$pid/cmdline" 2>/dev/null)"
done
kill -TERM $first 2>/dev/null
turn=0
while [ "$turn" -lt 20 ]; do
    alive=
    for pid in $first; do
        { IFS= read -r line <"/proc/$pid/stat"; } 2>/dev/null || continue
        case ${line##*) } in Z*) ;; *) alive=1 ;; esac
    done
    [ -n "$alive" ] || break
    sleep 0.1 2>/dev/null || sleep 1
    turn=$((turn + 1))
done
members
kill -KILL $first $set 2>/dev/null
exit 0
"#;

/// Printable ASCII and white space: what every shell keeps unchanged between single quotes.
fn plain(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b' '..=b'~'))
}

fn sound<'a>(what: &str, text: &'a str) -> Result<&'a str, GuestError> {
    if text.contains('\0') {
        Err(refused(&format!("the {what}"), "it holds a NUL byte, which no program can be given"))
    } else {
        Ok(text)
    }
}

fn sound_variable(name: &str, value: &str) -> Result<(), GuestError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(refused(
            &format!("the environment variable `{name}`"),
            "a name is made of letters, digits and `_`",
        ));
    }
    // The value may be a secret: it is not quoted in the message.
    sound(&format!("value of the environment variable `{name}`"), value).map(|_| ())
}

fn refused(what: &str, reason: &str) -> GuestError {
    GuestError::Remote { operation: format!("handing over {what}"), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quoted_word_cannot_end_early() {
        assert_eq!(quote("a'b; $(x)"), r"'a'\''b; $(x)'");
    }

    #[test]
    fn refuses_nul_and_names_that_are_no_names() {
        for name in ["", "A B", "1A", "A=B", "A;x", "É"] {
            let mut command = Command::new("true", Duration::from_secs(1));
            command.env.insert(name.to_owned(), String::new());
            assert!(request(&Files::new("/run/kiln"), &Words::new(), &command, false).is_err(), "{name:?}");
        }
        let mut command = Command::new("true", Duration::from_secs(1));
        command.secrets.insert("A".to_owned(), kiln_core::Secret::new("canary\0".to_owned()));
        let error = request(&Files::new("/run/kiln"), &Words::new(), &command, false).unwrap_err().to_string();
        assert!(!error.contains("canary"), "{error}");
        assert!(
            request(&Files::new("/run/kiln"), &Words::new(), &Command::new("a\0b", Duration::from_secs(1)), false)
                .is_err()
        );
    }
}
