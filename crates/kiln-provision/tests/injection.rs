//! Whatever a variable holds reaches a step unchanged, as text: nothing is ever pasted into a command.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{fmt::Write as _, fs, path::Path};

use kiln_provision::cases;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};

/// Texts that hurt, and many that chance makes. No NUL: no environment can hold one, and it is refused.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "'",
        "\"",
        "\\",
        "$(id)",
        "`id`",
        "; id",
        "\n",
        "a\n'b\n",
        "KILN",
        "-n",
        "%s",
        "é🦀",
        "\u{1}\u{7f}",
        "!!",
        "*",
        "~",
    ]
    .map(str::to_owned)
    .into();
    let mut runner = TestRunner::new(Config::default());
    let any = proptest::collection::vec("[^\0]{0,40}", 100);
    texts.extend(any.new_tree(&mut runner).unwrap().current());
    texts
}

#[tokio::test]
async fn any_text_round_trips_as_argument_and_environment() {
    let root = tempfile::tempdir().unwrap();
    let shell = root.path().join("shell");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../provisioners/shell"), &shell);
    let texts = texts();
    // What would be an expression of the template is not text any more.
    let plain = |text: &String| text.replace("{{", "{").replace("{%", "{").replace("{#", "{");
    let json = |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
    let quoted = |text: &String| json(&plain(text));
    let mut env = String::new();
    let mut script = String::from("for argument; do printf '%s\\0' \"$argument\"; done >/args\n: >/env\n");
    for (index, text) in texts.iter().enumerate() {
        writeln!(env, "V{index} = {}", quoted(text)).unwrap();
        writeln!(script, "printf '%s\\0' \"$V{index}\" >>/env").unwrap();
    }
    let args: Vec<String> = texts.iter().map(quoted).collect();
    let expected: String = texts.iter().map(|text| plain(text) + "\0").collect();
    let case = shell.join("cases/any.toml");
    fs::write(
        &case,
        format!(
            "summary = \"any text\"\n[options]\nscript = {}\nargs = [{}]\n[env]\n{env}\n[expect.files]\n\
             \"/args\" = {{ content = {expected} }}\n\"/env\" = {{ content = {expected} }}\n",
            json(&script),
            args.join(", "),
            expected = json(&expected),
        ),
    )
    .unwrap();
    let work = tempfile::tempdir().unwrap();
    cases::run(&shell, &case, work.path()).await.unwrap_or_else(|failure| panic!("{failure}"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("cases")).unwrap();
    for name in ["provisioner.toml", "run"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}
