//! The recipe digest: over everything that can change the image, and nothing else.
//!
//! In: the image's name (a member of a matrix is another image even when its steps are the same), base (one of the
//! registry by its version and its disk digest), memory, CPUs and disk (steps see them), every step that runs with its provisioner's digest, options, input digests, environment
//! and the *names* of its secrets, checks, waivers and output formats (they decide what is sealed and written).
//!
//! Out: version and description, publishing, accelerator, time limits and retries, names of steps and checks (they
//! change how a bake goes, not what it makes), absolute paths (they differ between machines), values of secrets.
//! Steps that `when` leaves out are out. The TOML's comments, white space and key order never get this far.

use serde_json::{Value as Json, json};

use crate::{
    Digest,
    digest::canonical,
    plan::{Base, Builder, Check, Plan, Step},
};

/// Raised when the same plan gets another digest.
const FORMAT: &str = "kiln.recipe.v1";

pub(crate) fn digest(plan: &Plan) -> Digest {
    let recipe = json!({
        "format": FORMAT,
        "image": plan.image,
        "base": base(&plan.base),
        "machine": machine(&plan.builder),
        "steps": plan.steps.iter().filter(|step| step.skipped.is_none()).map(step).collect::<Vec<_>>(),
        "checks": plan.checks.iter().map(check).collect::<Vec<_>>(),
        "waivers": plan.waivers,
        "outputs": plan.outputs,
    });
    Digest::of(canonical(&recipe).as_bytes())
}

/// What of the machine the steps see. Of an instance no more than its volume is certain: which type it gets is not.
fn machine(builder: &Builder) -> Json {
    match builder {
        Builder::Qemu(machine) => json!({ "memory": machine.memory, "cpus": machine.cpus, "disk": machine.disk }),
        Builder::Ec2(machine) => json!({ "ec2": { "volume": machine.volume, "user_data": machine.user_data } }),
    }
}

/// Of a base of the registry, what it is; how it is called in the template (a channel) does not matter.
fn base(base: &Base) -> Json {
    match base {
        Base::Image(base) => {
            let version = base.version.as_ref();
            let (version, disk) = (version.map(|version| &version.version), version.map(|version| &version.disk));
            json!({ "image": { "image": base.image, "version": version, "disk": disk } })
        }
        Base::Ami(base) => {
            json!({ "ami": { "region": base.region, "ami": base.found.as_ref().map(|found| &found.ami) } })
        }
        Base::Debian(_) | Base::Qcow2(_) => json!(base),
    }
}

fn step(step: &Step) -> Json {
    let inputs: Vec<Json> = step
        .inputs
        .iter()
        .map(|input| json!({ "option": input.option, "directory": input.directory, "digest": input.digest }))
        .collect();
    json!({
        "provisioner": step.provisioner_digest,
        "runs_on": step.runs_on,
        "options": step.options,
        "inputs": inputs,
        "env": step.env,
        "secrets": step.secrets.keys().collect::<Vec<_>>(),
    })
}

fn check(check: &Check) -> Json {
    json!({ "kind": check.kind, "guest": check.on_guest, "artifact": check.on_artifact })
}
