//! Real bakes: the binary bakes a template in real QEMU, and stock tools judge what came out.

#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

use std::{fs, process::Command};

use kiln_tests::{
    home::Home,
    plain_vm::{Firmware, PlainVm},
    running::alone,
};

/// Bakes `templates/web`, exports it, and judges the file and two clones of the machine in it with stock tools only.
#[test]
fn a_baked_web_server_boots_anywhere_and_serves() {
    let _turn = alone();
    let home = Home::new("bake-web");
    home.kiln(&["build", "templates/web"]).succeeds();
    let qcow2 = home.path("web.qcow2");
    home.kiln(&["export", "web", "--to", qcow2.to_str().expect("a UTF-8 path")]).succeeds();

    check_file(&home, &qcow2);

    let one = PlainVm::boot(&qcow2, &home.path("one"), "clone-one", Firmware::Bios);
    let page = Command::new("curl").args(["-sS", "--fail", "--max-time", "60", &one.web()]).output().expect("run curl");
    assert!(page.status.success(), "nginx does not answer: {page:?}\n{}", one.console());
    assert!(String::from_utf8_lossy(&page.stdout).contains("baked by kiln"), "{page:?}");
    assert_eq!(one.read("cat /etc/hostname"), "clone-one", "cloud-init follows the seed's metadata");
    // The disk of the template is larger than the base; the file system must have followed.
    assert!(one.read("df --output=size -m / | tail -1").trim().parse::<u64>().expect("a size") > 1500);

    refuses_the_builds_own_keys(&home, &one);

    let two = PlainVm::boot(&qcow2, &home.path("two"), "clone-two", Firmware::Uefi);
    for identity in
        ["cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key.pub", "sha256sum < /var/lib/systemd/random-seed"]
    {
        assert_ne!(one.read(identity), two.read(identity), "two machines share `{identity}`");
    }
    assert_eq!(two.read("systemctl is-active nginx ssh"), "active\nactive");
}

/// A second template, with more in it: hardened, and judged by what `sshd` itself says it does.
#[test]
fn the_golden_base_is_hardened_and_publishes_once() {
    let _turn = alone();
    let home = Home::new("bake-golden");
    home.kiln(&["build", "templates/golden-base"]).succeeds();
    let shown = home.kiln(&["show", "golden-base", "--json"]).succeeds();
    let artifact: serde_json::Value = serde_json::from_str(&shown.stdout).expect("kiln show prints JSON");
    assert_eq!(artifact["machine"]["accelerator"].as_str().map(|name| ["kvm", "tcg"].contains(&name)), Some(true));
    assert!(artifact["steps"].as_array().is_some_and(|steps| steps.iter().all(|step| step["outcome"] == "ok")));
    assert!(artifact["checks"].as_array().is_some_and(|checks| checks.iter().any(|check| check["on"] == "artifact")));

    let qcow2 = home.path("golden.qcow2");
    home.kiln(&["export", "golden-base", "--to", qcow2.to_str().expect("a UTF-8 path")]).succeeds();
    let vm = PlainVm::boot(&qcow2, &home.path("vm"), "golden", Firmware::Bios);
    let settings = vm.read("sshd -T");
    for rule in ["passwordauthentication no", "permitemptypasswords no", "permituserenvironment no"] {
        assert!(settings.contains(rule), "sshd does not hold `{rule}`:\n{settings}");
    }
    assert_eq!(vm.read("awk -F: '$2 !~ /^[!*]/' /etc/shadow"), "", "an account has a password");
}

/// The keys a bake logged in with are in its checkpoints; nothing that was published lets them in.
fn refuses_the_builds_own_keys(home: &Home, clone: &PlainVm) {
    let checkpoints = fs::read_dir(home.path("cache/checkpoints")).expect("list the checkpoints").flatten();
    let keys: Vec<_> = checkpoints.map(|entry| entry.path().join("login.key")).filter(|key| key.exists()).collect();
    assert!(!keys.is_empty(), "the bake took no checkpoint");
    for key in keys {
        let tried = clone.ssh_with(&key, "true");
        assert_eq!(tried.status.code(), Some(255), "{tried:?}");
        assert!(String::from_utf8_lossy(&tried.stderr).contains("Permission denied"), "{tried:?}");
    }
}

/// `qemu-img` is the outside judge of our writer: the file is sound, and holds the guest's bytes exactly.
fn check_file(home: &Home, qcow2: &std::path::Path) {
    let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(qcow2).output().expect("run qemu-img");
    assert!(check.status.success(), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains("No errors were found"), "{check:?}");
    let (plain, raw) = (home.path("plain.qcow2"), home.path("web.raw"));
    let convert =
        Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "qcow2"]).arg(qcow2).arg(&plain).status();
    assert!(convert.expect("run qemu-img").success());
    home.kiln(&["export", "web", "--format", "raw", "--to", raw.to_str().expect("a UTF-8 path")]).succeeds();
    for (format, other) in [("qcow2", &plain), ("raw", &raw)] {
        let compare =
            Command::new("qemu-img").args(["compare", "-f", "qcow2", "-F", format]).arg(qcow2).arg(other).output();
        let compare = compare.expect("run qemu-img");
        assert!(compare.status.success(), "{compare:?}");
    }
    for file in [plain, raw] {
        fs::remove_file(file).expect("remove the copy");
    }
}
