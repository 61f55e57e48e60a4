//! A real S3 server for registries in a bucket: moto's, from the Python environment that `tests/run` makes.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kiln_io::time::done_within;

use crate::home::{Home, Ran, unpacked};

/// moto's own server answers several requests at once, and on a busy machine two of them may both find that a key is absent: the
/// probe refuses it then. One request after the other, it keeps its word.
const ONE_AT_A_TIME: &str = "
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=False)
";

/// moto's server with the bucket `images`, ended when it is dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    endpoint: String,
}

impl Moto {
    /// One that listens at `address`, an IP of this machine.
    pub fn start(address: &str) -> Self {
        // The port is free when it is asked for; who else takes such ports takes the next.
        let listener = TcpListener::bind((address, 0)).expect("bind a free port");
        let port = listener.local_addr().expect("ask for the port").port();
        drop(listener);
        let child = Command::new(unpacked("aws-python/bin/python3"))
            .args(["-c", ONE_AT_A_TIME, address, &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start moto");
        let moto = Self { child, endpoint: format!("http://{address}:{port}") };
        let up = done_within(Duration::from_mins(2), || {
            let made = Command::new("curl").args(["-sf", "-X", "PUT", &format!("{}/images", moto.endpoint)]).status();
            made.map(|made| made.success())
        });
        assert!(up.expect("run curl"), "moto does not answer");
        moto
    }

    /// A registry under this prefix of the bucket, as `--registry` takes it.
    pub fn registry(&self, prefix: &str) -> String {
        format!("s3://images/{prefix}?endpoint={}", self.endpoint)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of `user` on a registry in a bucket, with the credentials that moto takes.
pub fn command(user: &Home, registry: &str, arguments: &[&str]) -> Command {
    let mut command = user.command(arguments);
    for (name, value) in [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")]
    {
        command.env(name, value);
    }
    command.env("KILN_REGISTRY", registry);
    command
}

/// Runs it.
pub fn kiln(user: &Home, registry: &str, arguments: &[&str]) -> Ran {
    Ran::new(arguments, &command(user, registry, arguments).output().expect("run kiln"))
}
