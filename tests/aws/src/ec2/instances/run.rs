//! `RunInstances`.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};

use crate::{
    ec2::{
        images::{
            Image,
            mapping::{self, Wanted, WantedEbs},
        },
        instances::{Goal, Instance, Metadata, describe::write_reservation},
        names::{check, not_found},
        network::{Subnet, architecture},
        tags::specified,
        volumes::Volume,
    },
    form::Form,
    machines::Launch,
    refusal::Refusal,
    world::{Tags, World},
    xml::Xml,
};

const USER_DATA: usize = 16_384;

/// What was asked for, before anything was looked up.
struct Wish {
    image: String,
    instance_type: String,
    count: u32,
    key: Option<String>,
    groups: Vec<String>,
    subnet: Option<String>,
    zone: Option<String>,
    user_data: Option<String>,
    metadata: Metadata,
    ends_on_shutdown: bool,
    protected: bool,
    spot: bool,
    profile: Option<String>,
    devices: Vec<Wanted>,
    instance_tags: Tags,
    volume_tags: Tags,
}

pub(crate) fn run(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    world.apply_template(&mut form)?;
    let wish = wish(&mut form)?;
    form.finish()?;
    if let Some(made) = world.repeated("RunInstances", token.as_deref(), &request)? {
        let ids: Vec<String> = made.split(' ').map(str::to_owned).collect();
        write_reservation(world, &ids, xml);
        return Ok(());
    }
    let image = world.launchable_image(&wish.image)?;
    if !image.is_available() {
        let message = format!("The image id '[{}]' is in the state {}", image.id, image.state());
        return Err(Refusal::client("InvalidAMIID.Unavailable", message));
    }
    check_type(&wish.instance_type, &image)?;
    world.check_key(wish.key.as_deref())?;
    let groups = world.groups_of(&wish)?;
    check_user_data(wish.user_data.as_deref())?;
    let subnet = world.place(&wish)?;
    let volumes = world.volumes_of(&wish, &image)?;
    let reservation = world.id("r");
    let mut ids = Vec::new();
    for _ in 0..wish.count {
        ids.push(world.launch(&wish, &image, &groups, &subnet, &volumes, (&reservation, token.clone())));
    }
    world.remember("RunInstances", token.as_deref(), &request, &ids.join(" "));
    write_reservation(world, &ids, xml);
    Ok(())
}

fn wish(form: &mut Form) -> Result<Wish, Refusal> {
    let (least, most) = (form.number("MinCount")?, form.number("MaxCount")?);
    let (Some(least), Some(most)) = (least, most) else { return Err(Refusal::missing("MinCount")) };
    if least < 1_u32 || most < least {
        return Err(Refusal::invalid("MaxCount must be at least MinCount, and that at least 1"));
    }
    let mut groups = form.list("SecurityGroupId");
    let mut subnet = form.text("SubnetId");
    let interfaces = form.indexed("NetworkInterface");
    if !interfaces.is_empty() && (subnet.is_some() || !groups.is_empty()) {
        let message = "Network interfaces and an instance-level subnet or security groups may not be specified on the same request";
        return Err(Refusal::client("InvalidParameterCombination", message));
    }
    if let Some(at) = interfaces.first() {
        form.number::<u32>(&format!("{at}.DeviceIndex"))?;
        form.flag(&format!("{at}.AssociatePublicIpAddress"))?;
        form.flag(&format!("{at}.DeleteOnTermination"))?;
        subnet = form.text(&format!("{at}.SubnetId"));
        groups = form.list(&format!("{at}.SecurityGroupId"));
    }
    let spot = form.choice("InstanceMarketOptions.MarketType", &["spot"])?.is_some();
    form.text("InstanceMarketOptions.SpotOptions.MaxPrice");
    form.choice("InstanceMarketOptions.SpotOptions.SpotInstanceType", &["one-time"])?;
    form.choice("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", &["terminate"])?;
    for flag in ["Monitoring.Enabled", "EbsOptimized"] {
        form.flag(flag)?;
    }
    let arn = form.text("IamInstanceProfile.Arn");
    let shutdown = form.choice("InstanceInitiatedShutdownBehavior", &["stop", "terminate"])?;
    let mut tags = specified(form, &["instance", "volume", "network-interface", "spot-instances-request"])?;
    Ok(Wish {
        image: form.required("ImageId")?,
        instance_type: form.text("InstanceType").unwrap_or_else(|| "m1.small".to_owned()),
        count: most,
        key: form.text("KeyName"),
        groups,
        subnet,
        zone: form.text("Placement.AvailabilityZone"),
        user_data: form.text("UserData"),
        metadata: metadata(form)?,
        ends_on_shutdown: shutdown.as_deref() == Some("terminate"),
        protected: form.flag("DisableApiTermination")? == Some(true),
        spot,
        profile: arn.or_else(|| form.text("IamInstanceProfile.Name")),
        devices: mapping::wanted(form)?,
        instance_tags: tags.remove("instance").unwrap_or_default(),
        volume_tags: tags.remove("volume").unwrap_or_default(),
    })
}

fn metadata(form: &mut Form) -> Result<Metadata, Refusal> {
    form.choice("MetadataOptions.InstanceMetadataTags", &["enabled", "disabled"])?;
    let tokens = form.choice("MetadataOptions.HttpTokens", &["optional", "required"])?;
    let endpoint = form.choice("MetadataOptions.HttpEndpoint", &["enabled", "disabled"])?;
    Ok(Metadata {
        tokens: tokens.unwrap_or_else(|| "optional".to_owned()),
        hops: form.number("MetadataOptions.HttpPutResponseHopLimit")?.unwrap_or(1),
        endpoint: endpoint.unwrap_or_else(|| "enabled".to_owned()),
    })
}

fn check_type(instance_type: &str, image: &Image) -> Result<(), Refusal> {
    let Some(architecture) = architecture(instance_type) else {
        return Err(Refusal::invalid(format!("Invalid value '{instance_type}' for InstanceType.")));
    };
    if image.architecture != architecture {
        let message = format!(
            "The architecture '{architecture}' of the specified instance type does not match the architecture '{}' of the specified AMI.",
            image.architecture
        );
        return Err(Refusal::invalid(message));
    }
    if !image.ena || image.virtualization != "hvm" {
        let message = format!(
            "Enhanced networking with the Elastic Network Adapter (ENA) is required for the '{instance_type}' instance type."
        );
        return Err(Refusal::client("InvalidParameterCombination", message));
    }
    Ok(())
}

fn check_user_data(user_data: Option<&str>) -> Result<(), Refusal> {
    let Some(text) = user_data else { return Ok(()) };
    let bytes = BASE64.decode(text).map_err(|_| Refusal::invalid("Invalid BASE64 encoding of user data."))?;
    if bytes.len() > USER_DATA {
        return Err(Refusal::invalid("User data is limited to 16384 bytes"));
    }
    Ok(())
}

impl World {
    fn check_key(&mut self, name: Option<&str>) -> Result<(), Refusal> {
        let Some(name) = name else { return Ok(()) };
        let id = self.here().key_pairs.get(name).map(|key| key.id.clone());
        if id.is_some_and(|id| self.sees(&id)) {
            return Ok(());
        }
        Err(Refusal::client("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist")))
    }

    fn groups_of(&mut self, wish: &Wish) -> Result<Vec<String>, Refusal> {
        if wish.groups.is_empty() {
            return Ok(vec![self.here().network.default_group.clone()]);
        }
        for id in &wish.groups {
            check(id, "sg")?;
            if !self.here().groups.contains_key(id) || !self.sees(id) {
                return Err(not_found(id));
            }
        }
        Ok(wish.groups.clone())
    }

    /// The subnet, with the machines taken that the table of capacities counts.
    fn place(&mut self, wish: &Wish) -> Result<Subnet, Refusal> {
        let subnets = self.here().network.subnets.clone();
        let named = |subnet: &&Subnet| {
            wish.subnet.as_ref().is_none_or(|id| *id == subnet.id)
                && wish.zone.as_ref().is_none_or(|zone| *zone == subnet.zone)
        };
        let fitting: Vec<&Subnet> = subnets.iter().filter(named).collect();
        if fitting.is_empty() {
            let zone = wish.zone.clone().unwrap_or_default();
            return Err(wish
                .subnet
                .as_deref()
                .map_or_else(|| Refusal::invalid(format!("Invalid availability zone: [{zone}]")), not_found));
        }
        let place = |subnet: &Subnet| (wish.instance_type.clone(), subnet.zone.clone());
        let enough = |subnet: &&&Subnet| self.capacity.get(&place(subnet)).is_none_or(|left| *left >= wish.count);
        let chosen = fitting.iter().find(enough).copied().cloned();
        let chosen = chosen.ok_or_else(|| Refusal::no_capacity(&wish.instance_type, &fitting[0].zone))?;
        if let Some(left) = self.capacity.get_mut(&place(&chosen)) {
            *left -= wish.count;
        }
        Ok(chosen)
    }

    /// The image's volumes, as the request changes them, and those that it adds.
    fn volumes_of(&mut self, wish: &Wish, image: &Image) -> Result<Vec<Volume>, Refusal> {
        let mut volumes = Vec::new();
        for mapping in &image.mappings {
            let changed = wish.devices.iter().find(|device| device.device == mapping.device);
            let Some(ebs) = mapping.ebs.as_ref().filter(|_| changed.is_none_or(|device| !device.none)) else {
                continue;
            };
            let change = changed.and_then(|device| device.ebs.clone()).unwrap_or_default();
            let mut near = self.regions.iter().filter(|((region, _), _)| *region == self.region);
            let origin = near.find_map(|(_, region)| region.snapshots.get(&ebs.snapshot));
            let origin = origin.ok_or_else(|| not_found(&ebs.snapshot))?.clone();
            if change.size.is_some_and(|size| size < origin.size) {
                let message = format!(
                    "Volume of size {}GB is smaller than snapshot '{}', expect size >= {}GB",
                    change.size.unwrap_or(0),
                    origin.id,
                    origin.size
                );
                return Err(mapping::mistake(message));
            }
            let mut volume = self.blank(&mapping.device, &change, ebs.size);
            volume.volume_type = change.volume_type.unwrap_or_else(|| ebs.volume_type.clone());
            volume.delete = change.delete.unwrap_or(ebs.delete);
            volume.encrypted = origin.encrypted || change.encrypted == Some(true);
            volume.key = change.key.or_else(|| origin.key.clone());
            volume.snapshot = Some(origin.id.clone());
            volume.is_root = mapping.device == image.root_device;
            volume.origin = Some(origin);
            volumes.push(volume);
        }
        let added =
            wish.devices.iter().filter(|device| !image.mappings.iter().any(|known| known.device == device.device));
        for device in added {
            let Some(ebs) = &device.ebs else { continue };
            let size =
                ebs.size.ok_or_else(|| mapping::mistake(format!("the device {} needs a size", device.device)))?;
            volumes.push(self.blank(&device.device, ebs, size));
        }
        Ok(volumes)
    }

    fn blank(&self, device: &str, ebs: &WantedEbs, size: u64) -> Volume {
        Volume {
            id: String::new(),
            size: ebs.size.unwrap_or(size),
            volume_type: ebs.volume_type.clone().unwrap_or_else(|| "gp2".to_owned()),
            snapshot: None,
            encrypted: ebs.encrypted == Some(true),
            key: ebs.key.clone(),
            origin: None,
            device: device.to_owned(),
            instance: String::new(),
            writer: String::new(),
            is_root: false,
            delete: ebs.delete.unwrap_or(true),
            zone: self.region.clone(),
        }
    }

    fn launch(
        &mut self,
        wish: &Wish,
        image: &Image,
        groups: &[String],
        subnet: &Subnet,
        volumes: &[Volume],
        (reservation, token): (&str, Option<String>),
    ) -> String {
        let id = self.id("i");
        let mut attached = Vec::new();
        for volume in volumes {
            let volume = Volume {
                id: self.id("vol"),
                instance: id.clone(),
                writer: id.clone(),
                zone: subnet.zone.clone(),
                ..volume.clone()
            };
            self.note(&volume.id.clone(), wish.volume_tags.clone());
            attached.push(volume.id.clone());
            self.here().volumes.insert(volume.id.clone(), volume);
        }
        let here = self.here();
        let address = here.network.subnets.iter_mut().find(|known| known.id == subnet.id).map(Subnet::address);
        let public_key = wish.key.as_ref().and_then(|key| here.key_pairs.get(key)).map(|key| key.public.clone());
        let instance = Instance {
            id: id.clone(),
            reservation: reservation.to_owned(),
            image: image.id.clone(),
            instance_type: wish.instance_type.clone(),
            architecture: image.architecture.clone(),
            subnet: subnet.id.clone(),
            zone: subnet.zone.clone(),
            vpc: here.network.vpc.clone(),
            key: wish.key.clone(),
            groups: groups.to_vec(),
            user_data: wish.user_data.clone(),
            metadata: wish.metadata.clone(),
            ends_on_shutdown: wish.ends_on_shutdown,
            protected: wish.protected,
            spot: wish.spot,
            token,
            launched: self.now(),
            address: address.unwrap_or_default(),
            profile: wish.profile.clone(),
            root_device: image.root_device.clone(),
            volumes: attached,
            goal: Goal::Running,
            progress: self.progress(),
            reason: None,
        };
        self.launches.push(Launch {
            instance: id.clone(),
            region: self.region.clone(),
            image: image.id.clone(),
            instance_type: wish.instance_type.clone(),
            user_data: BASE64.decode(wish.user_data.clone().unwrap_or_default()).unwrap_or_default(),
            public_key,
            address: instance.address.clone(),
        });
        self.note(&id, wish.instance_tags.clone());
        self.here().instances.insert(id.clone(), instance);
        id
    }
}
