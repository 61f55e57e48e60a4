//! One script that asks a guest's shell about services, files, packages and users, and the reading of its answer.
//!
//! Each answer stands after a line `@<nonce> <check> <field>`; the nonce is fresh, so nothing in the guest can forge one.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use kiln_core::plan::{Check, CheckKind};
use kiln_io::{
    guest::{Command, Guest, GuestError},
    random,
};

use super::ask::Kept;

/// Field to what the guest said.
pub(super) type Fields = BTreeMap<String, String>;

/// Bytes looked at of a file that must contain a text.
const CONTENT: usize = 1 << 20;

/// Asks about every check that a shell can answer; check number to its fields.
pub(super) async fn run(
    guest: &dyn Guest,
    checks: &[&Check],
    limit: Duration,
) -> Result<BTreeMap<usize, Fields>, GuestError> {
    let nonce = random::nonce();
    let script = script(checks, &nonce);
    if script.is_empty() {
        return Ok(BTreeMap::new());
    }
    let kept = Kept::default();
    guest.run(&Command::new(script, limit), &kept).await?;
    Ok(read(&String::from_utf8_lossy(&kept.parts().0), &nonce))
}

fn script(checks: &[&Check], nonce: &str) -> String {
    let questions: String = checks.iter().filter_map(|check| question(check.number, &check.kind)).collect();
    if questions.is_empty() {
        return questions;
    }
    format!("export LC_ALL=C\nsay() {{ printf '\\n@{nonce} %s %s\\n' \"$1\" \"$2\"; }}\n{questions}say 0 end\n")
}

fn question(number: usize, kind: &CheckKind) -> Option<String> {
    let mut text = String::new();
    let mut field = |name: &str, command: &str| {
        let _ = writeln!(text, "say {number} {name}; {command}");
    };
    match kind {
        CheckKind::Command { .. } | CheckKind::Http { .. } | CheckKind::Port { .. } => return None,
        CheckKind::Service { name, .. } => {
            let name = quote(name);
            field(
                "active",
                &format!(
                    "if command -v systemctl >/dev/null; then systemctl is-active -- {name} 2>/dev/null; \
                     elif command -v rc-service >/dev/null; then \
                     if rc-service {name} status >/dev/null 2>&1; then echo active; else echo inactive; fi; \
                     else echo 'no service manager'; fi"
                ),
            );
            field(
                "enabled",
                &format!(
                    "if command -v systemctl >/dev/null; then systemctl is-enabled -- {name} 2>/dev/null; \
                     elif rc-update show 2>/dev/null | sed 's/ //g' | grep -q \"^$(printf %s {name})|.\"; then echo enabled; \
                     else echo disabled; fi"
                ),
            );
        }
        CheckKind::File { path, contains, sha256, .. } => {
            let path = quote(path);
            field("exists", &format!("if [ -e {path} ] || [ -L {path} ]; then echo yes; else echo no; fi"));
            field(
                "stat",
                &format!("stat -L -c '%a %U %G' -- {path} 2>/dev/null || stat -c '%a %U %G' -- {path} 2>/dev/null"),
            );
            if contains.is_some() {
                field("content", &format!("[ ! -f {path} ] || head -c {CONTENT} -- {path}"));
            }
            if sha256.is_some() {
                field("sha256", &format!("[ ! -f {path} ] || sha256sum <{path}"));
            }
        }
        CheckKind::Package { name, .. } => {
            let name = quote(name);
            field(
                "version",
                &format!(
                    "if command -v dpkg-query >/dev/null; then \
                     dpkg-query -W -f='${{db:Status-Status}} ${{Version}}\\n' -- {name} 2>/dev/null | sed -n 's/^installed //p'; \
                     elif command -v rpm >/dev/null; then \
                     rpm -q --qf '%{{VERSION}}-%{{RELEASE}}\\n' -- {name} 2>/dev/null | grep -v 'not installed'; \
                     elif command -v apk >/dev/null; then kiln_name={name}; \
                     apk info -ev \"$kiln_name\" 2>/dev/null | while read -r line; do echo \"${{line#\"$kiln_name-\"}}\"; done; fi"
                ),
            );
        }
        CheckKind::User { name, .. } => {
            let name = quote(name);
            field(
                "passwd",
                &format!(
                    "if command -v getent >/dev/null; then getent passwd {name}; \
                     else kiln_name={name}; grep \"^$kiln_name:\" /etc/passwd; fi"
                ),
            );
            field("groups", &format!("id -Gn -- {name} 2>/dev/null || id -Gn {name} 2>/dev/null"));
        }
    }
    Some(text)
}

/// What systemd says of a service and the end of its log.
pub(super) fn service_log(name: &str) -> String {
    format!(
        "export LC_ALL=C SYSTEMD_COLORS=0; command -v systemctl >/dev/null || exit 0\n\
         systemctl --no-pager --full --lines=20 status -- {0} 2>&1 | head -n 50\n",
        quote(name)
    )
}

/// Head and body of a URL over the guest's curl; status 127 where there is none.
pub(super) fn curl(url: &str, limit: Duration) -> String {
    format!(
        "command -v curl >/dev/null || exit 127\n\
         exec curl --silent --show-error --include --http1.1 --raw --max-time {} -- {}\n",
        limit.as_secs(),
        quote(url)
    )
}

fn read(text: &str, nonce: &str) -> BTreeMap<usize, Fields> {
    let mut all: BTreeMap<usize, Fields> = BTreeMap::new();
    for part in text.split(&format!("\n@{nonce} ")).skip(1) {
        let (head, answer) = part.split_once('\n').unwrap_or((part, ""));
        if let Some((number, field)) = head.split_once(' ')
            && let Ok(number) = number.parse()
        {
            all.entry(number).or_default().insert(field.to_owned(), answer.to_owned());
        }
    }
    all
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cannot_forge_another() {
        let text = "\n@n1 3 content\nfirst\n@n2 4 exists\nyes\n@n1 4 exists\nno\n@n1 0 end\n";
        let read = read(text, "n1");
        assert_eq!(read[&3]["content"], "first\n@n2 4 exists\nyes");
        assert_eq!(read[&4]["exists"], "no");
    }
}
