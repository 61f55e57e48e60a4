//! What the machine limits: space, inodes, the size and number of files, a file system that is read-only; and many at once who
//! share one registry, some of them killed.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use kiln_tests::{
    home::{Home, kiln},
    served::Served,
};

use crate::scene::{Place, State, collected, promote, publisher, registry};

/// Runs `program` where `home` is a copy of `scene` on a file system of its own with `limit`; then reads everything.
fn on_a_small_disk(place: &Place, scene: &Path, limit: &str, program: &Command, home: &Home) -> Output {
    let script = "mount -t tmpfs -o \"$1\" none \"$2\" || exit 90
        cp -a \"$3/.\" \"$2/\" || exit 91
        kiln=$4; shift 4
        \"$@\"; code=$?
        \"$kiln\" registry verify --registry \"$HOME/data/registry\" || exit 92
        [ \"$(ls -A \"$HOME/data/registry/tmp\")\" = lock ] || exit 93
        exit $code";
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "sh", limit]).arg(home.path("")).arg(scene).arg(kiln());
    command.arg(program.get_program()).args(program.get_args()).current_dir(place.path(""));
    command.env_clear().env("PATH", env::var_os("PATH").unwrap()).env("HOME", home.path(""));
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.output().unwrap()
}

#[test]
fn a_publish_onto_a_disk_of_any_size_is_done_or_refused_with_what_is_missing() {
    let place = Place::new("small");
    let scene = place.scene("one", &["1.0.0"], |_| {});
    place.bake("1.1.0", None);
    let home = place.copy(&scene, "home");
    let program = publisher(&place, &home, "1.1.0");
    let (mut bytes, mut files) = (Vec::new(), Vec::new());
    let (pages, inodes) = used(&scene);
    for step in 0..12 {
        let (pages, inodes) = (pages + 3 * step, inodes + 2 * step);
        for (limit, missing, codes) in [
            (format!("size={}k", 4 * pages), "are needed", &mut bytes),
            (format!("nr_inodes={inodes}"), "holds no more files", &mut files),
        ] {
            let output = on_a_small_disk(&place, &scene, &limit, &program, &home);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let code = output.status.code();
            assert!(
                code == Some(0) || code == Some(1) && said.contains(missing) || code == Some(91),
                "{limit}: {output:?}"
            );
            codes.push(code);
        }
    }
    // From too small for what is there, over too small for the next, to large enough.
    for codes in [&bytes, &files] {
        assert!(codes.contains(&Some(1)) && codes.contains(&Some(0)), "{codes:?}");
    }
}

/// Pages and inodes that a copy of `directory` takes in memory.
fn used(directory: &Path) -> (u64, u64) {
    let (mut pages, mut inodes) = (1, 1);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let beneath = if path.is_dir() { used(&path) } else { (path.metadata().unwrap().len().div_ceil(4096), 1) };
        (pages, inodes) = (pages + beneath.0, inodes + beneath.1);
    }
    (pages, inodes)
}

#[test]
fn a_registry_that_is_mounted_read_only_is_read_and_refuses_every_change_at_once() {
    let place = Place::new("read-only");
    let scene = place.scene("moved", &["1.0.0", "1.1.0"], |registry| promote(registry, "1.0.0"));
    place.bake("1.2.0", None);
    let home = place.copy(&scene, "home");
    let out = place.path("out.qcow2").display().to_string();
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 90; shift; exec \"$@\"";
    let run = |program: &Command| {
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", script, "sh"])
            .arg(home.path(""))
            .arg(program.get_program())
            .args(program.get_args());
        command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.output().unwrap()
    };
    let changes: [&[&str]; 4] = [
        &["promote", "web", "1.1.0", "--to", "stable"],
        &["revoke", "web", "1.0.0", "--reason", "CVE"],
        &["channel", "web", "next", "--restrict"],
        &["registry", "prune", "--keep", "1", "--remove"],
    ];
    let changes = changes.iter().map(|arguments| home.command(arguments));
    for program in changes.chain([publisher(&place, &home, "1.2.0")]) {
        let output = run(&program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("Read-only file system"), "{program:?}: {output:?}");
    }
    let reads: [&[&str]; 5] = [
        &["images", "web"],
        &["resolve", "web@stable"],
        &["show", "web"],
        &["registry", "verify"],
        &["export", "web", "--to", &out, "--force"],
    ];
    for arguments in reads {
        let output = run(&home.command(arguments));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_limit_on_open_files_or_on_their_size_is_named() {
    let place = Place::new("limits");
    let nothing = place.scene("nothing", &[], |_| {});
    let one = place.scene("one", &["1.0.0"], |_| {});
    let server = place.copy(&one, "server");
    let served = Served::new(&server, &["--listen", "127.0.0.1:0"]);
    let limited = |limit: &str, home: &Home, arguments: &[&str]| {
        let program = home.command(arguments);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "sh"]).arg(program.get_program());
        command.args(program.get_args()).env_clear();
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
    };
    let home = place.copy(&one, "open-files");
    let output = limited("-n 4", &home, &["promote", "web", "1.0.0", "--to", "stable"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("Too many open files") && said.contains("ulimit -n"),
        "{output:?}"
    );
    home.kiln(&["promote", "web", "1.0.0", "--to", "stable"]).succeeds();

    let home = place.copy(&nothing, "file-size");
    let pull = ["pull", "web@1.0.0", "--registry", &served.url];
    let output = limited("-f 1", &home, &pull);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("File too large") && said.contains("ulimit -f"),
        "{output:?}"
    );
    home.kiln(&pull).succeeds();
    collected(&registry(&home.path("")), "after the limit");
}

#[test]
fn many_who_share_a_registry_do_not_disturb_each_other_also_when_some_are_killed() {
    const PULLS: usize = 32;
    let place = Place::new("shared");
    let (nothing, one) = (place.scene("nothing", &[], |_| {}), place.scene("one", &["1.0.0"], |_| {}));
    let server = place.copy(&one, "server");
    let served = Served::new(&server, &["--listen", "127.0.0.1:0"]);
    let home = place.copy(&nothing, "home");
    let pull = ["pull", "web@1.0.0", "--registry", &served.url];
    let spawn = |_| home.command(&pull).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pulls: Vec<_> = (0..PULLS).map(spawn).collect();
    for (number, pull) in pulls.iter_mut().enumerate().filter(|(number, _)| number % 4 == 0) {
        thread::sleep(Duration::from_millis(number as u64));
        let _ = pull.kill();
    }
    for (number, pull) in pulls.into_iter().enumerate() {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success() || number % 4 == 0, "{number}: {output:?}");
    }
    let registry = registry(&home.path(""));
    assert_eq!(State::of(&registry, "shared"), State::of(&crate::scene::registry(&server.path("")), "the server"));
    collected(&registry, "shared");
}

#[test]
fn who_holds_a_lock_keeps_no_reader_waiting_and_a_lock_dies_with_its_holder() {
    let place = Place::new("locked");
    let scene = place.scene("one", &["1.0.0"], |registry| promote(registry, "1.0.0"));
    let home = place.copy(&scene, "home");
    let lock = home.path("data/registry/images/web/lock");
    let mut holder = Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "600"]).spawn().unwrap();
    let free = || {
        let file = fs::File::open(&lock).unwrap();
        file.try_lock().is_ok()
    };
    while free() {
        thread::yield_now();
    }
    home.kiln(&["resolve", "web@stable"]).succeeds();
    home.kiln(&["registry", "verify"]).succeeds();
    let mut restrict = home.command(&["channel", "web", "next", "--restrict"]).stderr(Stdio::piped()).spawn().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(restrict.wait().unwrap().success());
    assert!(fs::exists(&lock).unwrap(), "the file stays, and means nothing");
}
