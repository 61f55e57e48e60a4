//! The shell text that runs a step, and the one that looks for causes when it failed.

use crate::{
    bundle::Bundle,
    encode::{quote, quote_always},
};

/// Exit status of the script when the step itself was not begun.
const NOT_BEGUN: i32 = 125;

/// Runs the step in its directory. `run` has no terminal and no input, so a prompt fails instead of waiting.
pub(crate) fn step(bundle: &Bundle, supports: &[String]) -> String {
    let run: Vec<String> = bundle.run.iter().map(|word| quote(word)).collect();
    format!(
        "{}cd {} || exit {NOT_BEGUN}\numask 022\n{} </dev/null\n",
        supported(supports),
        quote(&bundle.directory),
        run.join(" ")
    )
}

/// The same where the files were uploaded before: the script removes them.
pub(crate) fn uploaded_step(bundle: &Bundle, supports: &[String]) -> String {
    format!("{}kiln_status=$?\ncd /\n{}exit $kiln_status\n", step(bundle, supports), remove(bundle))
}

/// An empty directory that nobody else may enter, for an upload.
pub(crate) fn prepare(bundle: &Bundle) -> String {
    format!("{}umask 077\nmkdir -p {}\n", remove(bundle), quote(&bundle.directory))
}

pub(crate) fn remove(bundle: &Bundle) -> String {
    format!("rm -rf {}\n", quote(&bundle.directory))
}

/// What the guest can say about a failure it did not cause by itself.
pub(crate) const DIAGNOSE: &str = "export LC_ALL=C\n\
    echo \"clock $(date +%s)\"\n\
    df -Pk / /tmp /var /boot /run 2>/dev/null | sort -u | while read -r device blocks used free percent mount; do\n\
    case $percent in 9[89]%|100%) echo \"full $mount $blocks $free\";; esac; done\n\
    df -Pi / /var 2>/dev/null | sort -u | while read -r device inodes used free percent mount; do\n\
    case $percent in 99%|100%) echo \"inodes $mount\";; esac; done\n";

fn supported(supports: &[String]) -> String {
    if supports.is_empty() {
        return String::new();
    }
    let patterns: Vec<String> = supports.iter().map(|id| format!("*' {id} '*")).collect();
    let message = format!("kiln: this provisioner supports {}; this guest is ", supports.join(", "));
    format!(
        "kiln_os=$( (. /etc/os-release && printf ' %s %s ' \"$ID\" \"$ID_LIKE\") 2>/dev/null)\n\
         case $kiln_os in {}) ;; *) printf '%s\\n' {}\"${{kiln_os:-unknown}}\" >&2; exit {NOT_BEGUN};; esac\n",
        patterns.join("|"),
        quote_always(&message),
    )
}
