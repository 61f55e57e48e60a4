//! Block-device mappings: read from a request, checked, written into a reply.

use crate::{form::Form, refusal::Refusal, world::World, xml::Xml};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) device: String,
    pub(crate) virtual_name: Option<String>,
    pub(crate) ebs: Option<Ebs>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ebs {
    pub(crate) snapshot: String,
    /// In GiB.
    pub(crate) size: u64,
    pub(crate) volume_type: String,
    pub(crate) iops: Option<u32>,
    pub(crate) throughput: Option<u32>,
    pub(crate) delete: bool,
    pub(crate) encrypted: bool,
}

/// What a request says of one device. What it does not say comes from the image, or is EC2's default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) device: String,
    virtual_name: Option<String>,
    pub(crate) none: bool,
    pub(crate) ebs: Option<WantedEbs>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct WantedEbs {
    pub(crate) snapshot: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) volume_type: Option<String>,
    pub(crate) iops: Option<u32>,
    pub(crate) throughput: Option<u32>,
    pub(crate) delete: Option<bool>,
    pub(crate) encrypted: Option<bool>,
    pub(crate) key: Option<String>,
}

const VOLUME_TYPES: [&str; 7] = ["standard", "io1", "io2", "gp2", "gp3", "sc1", "st1"];

impl Mapping {
    pub(crate) fn root(device: &str, snapshot: &str, size: u64) -> Self {
        let ebs = Ebs {
            snapshot: snapshot.to_owned(),
            size,
            volume_type: "gp3".to_owned(),
            iops: None,
            throughput: None,
            delete: true,
            encrypted: false,
        };
        Self { device: device.to_owned(), virtual_name: None, ebs: Some(ebs) }
    }

    pub(crate) fn write(&self, xml: &mut Xml) {
        xml.text("deviceName", &self.device).maybe("virtualName", self.virtual_name.as_ref());
        if let Some(ebs) = &self.ebs {
            xml.node("ebs", |xml| {
                xml.text("snapshotId", &ebs.snapshot).text("volumeSize", ebs.size);
                xml.text("deleteOnTermination", ebs.delete).text("volumeType", &ebs.volume_type);
                xml.maybe("iops", ebs.iops).maybe("throughput", ebs.throughput).text("encrypted", ebs.encrypted);
            });
        }
    }
}

/// The mappings of a request.
pub(crate) fn wanted(form: &mut Form) -> Result<Vec<Wanted>, Refusal> {
    let mut all: Vec<Wanted> = Vec::new();
    for at in form.indexed("BlockDeviceMapping") {
        let device = form.required(&format!("{at}.DeviceName"))?;
        if all.iter().any(|other| other.device == device) {
            return Err(mistake(format!("The device '{device}' is used in more than one block-device mapping")));
        }
        let virtual_name = form.text(&format!("{at}.VirtualName"));
        let none = form.text(&format!("{at}.NoDevice")).is_some();
        let ebs = if form.has(&format!("{at}.Ebs")) { Some(wanted_ebs(form, &format!("{at}.Ebs"))?) } else { None };
        all.push(Wanted { device, virtual_name, none, ebs });
    }
    Ok(all)
}

fn wanted_ebs(form: &mut Form, at: &str) -> Result<WantedEbs, Refusal> {
    let name = |field: &str| format!("{at}.{field}");
    let ebs = WantedEbs {
        snapshot: form.text(&name("SnapshotId")),
        size: form.number(&name("VolumeSize"))?,
        volume_type: form.choice(&name("VolumeType"), &VOLUME_TYPES)?,
        iops: form.number(&name("Iops"))?,
        throughput: form.number(&name("Throughput"))?,
        delete: form.flag(&name("DeleteOnTermination"))?,
        encrypted: form.flag(&name("Encrypted"))?,
        key: form.text(&name("KmsKeyId")),
    };
    let volume_type = ebs.volume_type.as_deref().unwrap_or("gp2");
    if ebs.throughput.is_some() && volume_type != "gp3" {
        let message = format!("The parameter Throughput is not supported for {volume_type} volumes");
        return Err(Refusal::client("InvalidParameterCombination", message));
    }
    let with_iops = ["io1", "io2", "gp3"].contains(&volume_type);
    if (ebs.iops.is_some() && !with_iops) || (ebs.iops.is_none() && volume_type.starts_with("io")) {
        let message = format!("The parameter iops does not fit a volume of type {volume_type}");
        return Err(Refusal::client("InvalidParameterCombination", message));
    }
    if ebs.key.is_some() && ebs.encrypted != Some(true) {
        let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
        return Err(Refusal::client("InvalidParameterDependency", message));
    }
    Ok(ebs)
}

impl Wanted {
    /// The mapping of an image that is to be registered: its snapshot must be there and complete.
    pub(crate) fn registered(self, world: &mut World) -> Result<Mapping, Refusal> {
        let Some(ebs) = self.ebs else {
            return Ok(Mapping { device: self.device, virtual_name: self.virtual_name, ebs: None });
        };
        let device = &self.device;
        let Some(snapshot) = ebs.snapshot else {
            return Err(mistake(format!("the device {device} has no snapshot")));
        };
        if ebs.encrypted.is_some() {
            let message =
                format!("the encrypted flag cannot be specified since device {device} has a snapshot specified.");
            return Err(mistake(message));
        }
        let source = world.usable_snapshot(&snapshot)?;
        let size = ebs.size.unwrap_or(source.size);
        if size < source.size {
            let least = source.size;
            let message =
                format!("Volume of size {size}GB is smaller than snapshot '{snapshot}', expect size >= {least}GB");
            return Err(mistake(message));
        }
        let ebs = Ebs {
            encrypted: source.encrypted,
            snapshot,
            size,
            volume_type: ebs.volume_type.unwrap_or_else(|| "gp2".to_owned()),
            iops: ebs.iops,
            throughput: ebs.throughput,
            delete: ebs.delete.unwrap_or(true),
        };
        Ok(Mapping { device: self.device, virtual_name: self.virtual_name, ebs: Some(ebs) })
    }
}

pub(crate) fn mistake(message: impl Into<String>) -> Refusal {
    Refusal::client("InvalidBlockDeviceMapping", message)
}
