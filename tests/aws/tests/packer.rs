//! A foreign client bakes against the fake: Packer's `amazon-ebs`, with a real sshd as the instance.

#![expect(clippy::disallowed_methods, reason = "Packer is a process")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use kiln_aws_tests::{BLOCK, BaseImage, Fake, Launch, Machines};
use kiln_tests::sshd::{Sshd, user};
use serde_json::json;

const REGION: &str = "us-east-1";
const OTHERS: &str = "136693071363";

/// Every instance is the machine of this test, reached through its sshd; its disk is a file.
#[derive(Debug)]
struct Here {
    disk: PathBuf,
    seen: Mutex<Vec<String>>,
}

impl Machines for Here {
    fn start(&self, launch: &Launch) -> Option<String> {
        self.seen.lock().unwrap().push(format!("start {}", launch.instance_type));
        Some("127.0.0.1".to_owned())
    }

    fn stop(&self, _: &str) {
        self.seen.lock().unwrap().push("stop".to_owned());
    }

    fn terminate(&self, _: &str) {
        self.seen.lock().unwrap().push("terminate".to_owned());
    }

    fn console(&self, _: &str) -> String {
        String::new()
    }

    fn disk(&self, _: &str) -> Option<PathBuf> {
        Some(self.disk.clone())
    }
}

fn template(fake: &Fake, sshd: &Sshd, image: &str, disk: &Path) -> String {
    let builder = json!({
        "type": "amazon-ebs",
        "access_key": "AKIAPACKER", "secret_key": "secret", "region": REGION,
        "custom_endpoint_ec2": fake.endpoint(),
        "skip_region_validation": true, "skip_metadata_api_check": true, "skip_credential_validation": true,
        "source_ami": image, "instance_type": "t3.micro", "ami_name": "packer-web",
        "ssh_keypair_name": "packer", "ssh_private_key_file": sshd.directory().join("login_key"),
        "ssh_username": user(), "ssh_port": sshd.port, "ssh_interface": "private_ip",
        "ami_users": ["222233334444"],
        "tags": { "build": "foreign" }, "snapshot_tags": { "build": "foreign" },
        "launch_block_device_mappings": [{
            "device_name": "/dev/xvda", "volume_size": 2, "volume_type": "gp2", "delete_on_termination": true,
        }],
    });
    let step = json!({ "type": "shell", "inline": [format!("printf baked >> {}", disk.display())] });
    json!({ "builders": [builder], "provisioners": [step] }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn packer_bakes_an_image_of_what_its_provisioner_wrote_and_leaves_nothing_else() {
    let (fake, sshd) = (Fake::start(), Sshd::start().await);
    let disk = sshd.directory().join("disk.raw");
    fs::write(&disk, b"disk: ").unwrap();
    let here = Arc::new(Here { disk: disk.clone(), seen: Mutex::default() });
    fake.machines(here.clone());
    let base = BaseImage { region: REGION, owner: OTHERS, name: "debian-12", architecture: "x86_64", disk: b"base" };
    let image = fake.base_image(base);
    let key = BASE64.encode(sshd.login.public.line());
    fake.ec2(Fake::ACCOUNT, REGION, "ImportKeyPair", &[("KeyName", "packer"), ("PublicKeyMaterial", &key)]).unwrap();
    let before = fake.living();

    let file = sshd.directory().join("template.json");
    fs::write(&file, template(&fake, &sshd, &image, &disk)).unwrap();
    let (home, path) = (sshd.directory().to_owned(), std::env::var("PATH").unwrap());
    let packer = tokio::task::spawn_blocking(move || {
        let mut packer = Command::new("packer");
        packer.args(["build", "-color=false"]).arg(&file).current_dir(&home);
        // Asks neither its makers nor a metadata service for anything.
        packer.env_clear().env("PATH", path).env("HOME", &home).env("CHECKPOINT_DISABLE", "1");
        packer.env("AWS_POLL_DELAY_SECONDS", "1").output().unwrap()
    });
    let output = packer.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let refused: Vec<_> = fake.ledger().into_iter().filter(|entry| entry.refused.is_some()).collect();
    assert!(output.status.success(), "{said}\n{refused:#?}");

    let after: Vec<_> = fake.living().into_iter().filter(|living| !before.contains(living)).collect();
    let kinds: Vec<_> = after.iter().map(|living| (living.kind, living.tags["build"].as_str())).collect();
    assert_eq!(kinds, [("image", "foreign"), ("snapshot", "foreign")], "{said}");
    let snapshot = fake.root_snapshot(REGION, Fake::ACCOUNT, &after[0].id).unwrap();
    assert_eq!(snapshot, after[1].id);
    let block = fake.block(REGION, Fake::ACCOUNT, &snapshot, 0).unwrap();
    assert!(block.starts_with(b"disk: baked\0") && block.len() == BLOCK);
    let launch = fake.ec2(
        Fake::ACCOUNT,
        REGION,
        "DescribeImageAttribute",
        &[("ImageId", &after[0].id), ("Attribute", "launchPermission")],
    );
    assert!(launch.unwrap().contains("222233334444"));
    assert_eq!(*here.seen.lock().unwrap(), ["start t3.micro", "stop", "terminate"]);
}
