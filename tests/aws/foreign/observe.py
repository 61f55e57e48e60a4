"""One walk through the actions that kiln uses, by AWS's own Python client.

Prints a line for each observation: what was asked, and what came back, without what differs from run to run. The same
script runs against the fake and against moto; `observed.txt` beside it holds both answers.

Usage: observe.py URL
       observe.py --moto    against moto, started in this process
"""

import base64
import hashlib
import os
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError

BLOCK = 524288
os.environ.update(AWS_ACCESS_KEY_ID="AKIAKILNFOREIGN", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
for stray in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
    os.environ.pop(stray, None)


def moto():
    """moto at its strictest, on a free port."""
    os.environ.update(
        MOTO_ENABLE_AMI_VALIDATION="true", MOTO_ENABLE_KEYPAIR_VALIDATION="true",
        MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION="true")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


URL = moto() if sys.argv[1] == "--moto" else sys.argv[1]


def client(name, region="us-east-1"):
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20)
    return boto3.client(name, endpoint_url=URL, region_name=region, config=config)


ec2, ebs, ssm, sts = client("ec2"), client("ebs"), client("ssm"), client("sts")
scaling, west = client("autoscaling"), client("ec2", "us-west-2")


def show(value):
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return str(value)


def observe(name, ask):
    """Prints what `ask` returns, or the code that it is refused with; returns the answer."""
    try:
        answer = ask()
    except ClientError as error:
        meta = error.response
        print(f"{name}: {meta['ResponseMetadata']['HTTPStatusCode']} {meta['Error']['Code']}")
        return None
    except (ParamValidationError, Exception) as error:  # a reply that the client cannot read is an observation too
        print(f"{name}: {type(error).__name__}")
        return None
    shown, result = answer if isinstance(answer, tuple) else (answer, answer)
    print(f"{name}: {show(shown)}")
    return result


def tags(kind, **pairs):
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in pairs.items()]}]


def sha(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def put(snapshot, index, data, checksum=None):
    return ebs.put_snapshot_block(
        SnapshotId=snapshot, BlockIndex=index, BlockData=data, DataLength=len(data),
        Checksum=checksum or sha(data), ChecksumAlgorithm="SHA256",
    )


def linear(blocks):
    return sha(b"".join(hashlib.sha256(data).digest() for _, data in sorted(blocks.items())))


def identity():
    observe("caller", lambda: bool(sts.get_caller_identity()["Account"]))


def upload():
    started = observe("start a snapshot", lambda: (lambda r: ((r["Status"], r["VolumeSize"], r["BlockSize"]), r))(
        ebs.start_snapshot(VolumeSize=1, ClientToken="first", Tags=[{"Key": "build", "Value": "b1"}])))
    snapshot = started["SnapshotId"]
    observe("the same client token", lambda: ebs.start_snapshot(
        VolumeSize=1, ClientToken="first", Tags=[{"Key": "build", "Value": "b1"}])["SnapshotId"] == snapshot)
    observe("the token with another size", lambda: ebs.start_snapshot(VolumeSize=2, ClientToken="first")["Status"])
    observe("a volume of no size", lambda: ebs.start_snapshot(VolumeSize=70000)["Status"])
    blocks = {0: b"a" * BLOCK, 3: b"b" * BLOCK, 2047: b"c" * BLOCK}
    for index, data in blocks.items():
        observe(f"put block {index}", lambda: put(snapshot, index, data)["Checksum"] == sha(data))
    observe("a wrong checksum", lambda: bool(put(snapshot, 5, b"d" * BLOCK, sha(b"e"))))
    observe("a short block", lambda: bool(put(snapshot, 5, b"d" * 512)))
    observe("a block past the end", lambda: bool(put(snapshot, 2048, b"d" * BLOCK)))
    observe("state before completion", lambda: ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"])
    observe("a wrong count", lambda: ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=2)["Status"])
    observe("a wrong total", lambda: ebs.complete_snapshot(
        SnapshotId=snapshot, ChangedBlocksCount=3, Checksum=sha(b""), ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR")["Status"])
    observe("completion", lambda: ebs.complete_snapshot(
        SnapshotId=snapshot, ChangedBlocksCount=3, Checksum=linear(blocks), ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR")["Status"])
    observe("a block after completion", lambda: bool(put(snapshot, 7, b"d" * BLOCK)))
    described = lambda: ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]
    observe("the snapshot", lambda: [described()[key] for key in ("State", "VolumeSize", "Encrypted")])
    observe("its tags", lambda: [[tag["Key"], tag["Value"]] for tag in described().get("Tags", [])])
    listed = observe("its blocks", lambda: (lambda r: (
        [r["BlockSize"], r["VolumeSize"]] + [block["BlockIndex"] for block in r["Blocks"]], r["Blocks"]))(
        ebs.list_snapshot_blocks(SnapshotId=snapshot)))
    block = listed[1]
    observe("a block read back", lambda: ebs.get_snapshot_block(
        SnapshotId=snapshot, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"]
    )["BlockData"].read() == blocks[block["BlockIndex"]])
    observe("a wrong token", lambda: bool(ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=0, BlockToken="AAAA")))
    observe("blocks of a snapshot that is not there",
            lambda: ebs.list_snapshot_blocks(SnapshotId="snap-00000000000000000")["BlockSize"])
    return snapshot, blocks


def delta(parent, blocks):
    child = observe("start a child", lambda: (lambda r: (r.get("ParentSnapshotId") == parent, r["SnapshotId"]))(
        ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent)))
    observe("a child that is encrypted", lambda: ebs.start_snapshot(
        VolumeSize=1, ParentSnapshotId=parent, Encrypted=True)["Status"])
    put(child, 3, bytes(BLOCK)), put(child, 9, b"f" * BLOCK)
    observe("completion of the child", lambda: ebs.complete_snapshot(SnapshotId=child, ChangedBlocksCount=2)["Status"])
    observe("what changed", lambda: [block["BlockIndex"] for block in ebs.list_changed_blocks(
        FirstSnapshotId=parent, SecondSnapshotId=child)["ChangedBlocks"]])
    observe("what the child has", lambda: [block["BlockIndex"] for block in ebs.list_snapshot_blocks(
        SnapshotId=child)["Blocks"]])
    return child


def register(name, snapshot, **more):
    return ec2.register_image(
        Name=name, Architecture="x86_64", VirtualizationType="hvm", RootDeviceName="/dev/xvda", EnaSupport=True,
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {
            "SnapshotId": snapshot, "VolumeSize": 2, "VolumeType": "gp3", "DeleteOnTermination": True}}], **more)["ImageId"]


def images(snapshot):
    image = observe("register an image", lambda: (lambda i: (i.startswith("ami-"), i))(register(
        "kiln-web", snapshot, BootMode="uefi-preferred", ImdsSupport="v2.0", TpmSupport="v2.0",
        TagSpecifications=tags("image", build="b1"))))
    observe("its name again", lambda: bool(register("kiln-web", snapshot)))
    observe("a bad name", lambda: bool(register("a*b", snapshot)))
    observe("a snapshot that is not there", lambda: bool(register("kiln-none", "snap-00000000000000000")))
    observe("tags for another kind", lambda: bool(register("kiln-t", snapshot, TagSpecifications=tags("instance", a="b"))))
    described = lambda: ec2.describe_images(ImageIds=[image])["Images"][0]
    for keys in (("State", "Name", "Architecture", "RootDeviceName", "RootDeviceType", "VirtualizationType"),
                 ("BootMode", "ImdsSupport", "TpmSupport", "EnaSupport", "Public")):
        observe("the image's " + ", ".join(keys), lambda: [described().get(key) for key in keys])
    observe("its device", lambda: [
        described()["BlockDeviceMappings"][0]["Ebs"].get(key) for key in ("VolumeSize", "VolumeType", "DeleteOnTermination", "Encrypted")])
    observe("its snapshot", lambda: described()["BlockDeviceMappings"][0]["Ebs"].get("SnapshotId") == snapshot)
    observe("found by tag", lambda: [i["Name"] for i in ec2.describe_images(
        Owners=["self"], Filters=[{"Name": "tag:build", "Values": ["b1"]}])["Images"]])
    observe("found by a pattern", lambda: [i["Name"] for i in ec2.describe_images(
        Owners=["self"], Filters=[{"Name": "name", "Values": ["kiln-w*"]}])["Images"]])
    observe("an unknown filter", lambda: bool(ec2.describe_images(Filters=[{"Name": "colour", "Values": ["red"]}])))
    observe("a malformed id", lambda: bool(ec2.describe_images(ImageIds=["ami-x"])))
    observe("an id of nothing", lambda: bool(ec2.describe_images(ImageIds=["ami-00000000000000000"])))
    observe("delete the snapshot in use", lambda: bool(ec2.delete_snapshot(SnapshotId=snapshot)))
    return image


def attributes(image):
    permission = lambda: sorted(
        p.get("UserId") or p.get("Group") or p.get("OrganizationArn")
        for p in ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"])
    observe("share", lambda: bool(ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [
        {"UserId": "222233334444"}, {"OrganizationArn": "arn:aws:organizations::123456789012:organization/o-123example"}]})))
    observe("shared with", permission)
    observe("share with nobody", lambda: bool(ec2.modify_image_attribute(
        ImageId=image, LaunchPermission={"Add": [{"UserId": "bob"}]})))
    observe("unshare", lambda: (ec2.modify_image_attribute(
        ImageId=image, LaunchPermission={"Remove": [{"UserId": "222233334444"}]}), permission())[1])
    observe("describe it", lambda: (ec2.modify_image_attribute(ImageId=image, Description={"Value": "a web server"}),
            ec2.describe_images(ImageIds=[image])["Images"][0].get("Description"))[1])
    soon = time.strftime("%Y-%m-%dT%H:%M:00Z", time.gmtime(time.time() + 90 * 86400))
    observe("deprecate", lambda: ec2.enable_image_deprecation(ImageId=image, DeprecateAt=soon)["Return"])
    observe("deprecate in the past",
            lambda: ec2.enable_image_deprecation(ImageId=image, DeprecateAt="2020-01-01T00:00:00Z")["Return"])
    observe("deprecation", lambda: ec2.describe_images(ImageIds=[image])["Images"][0]["DeprecationTime"][:16] == soon[:16])
    observe("protect", lambda: bool(ec2.enable_image_deregistration_protection(ImageId=image)["Return"]))
    observe("deregister although protected", lambda: bool(ec2.deregister_image(ImageId=image)))
    observe("unprotect", lambda: bool(ec2.disable_image_deregistration_protection(ImageId=image)["Return"]))
    observe("references", lambda: len(ec2.describe_image_references(
        ImageIds=[image], IncludeAllResourceTypes=True)["ImageReferences"]))


def copies(image, snapshot):
    copy = observe("copy the image", lambda: (lambda i: (i.startswith("ami-"), i))(west.copy_image(
        Name="kiln-web", SourceImageId=image, SourceRegion="us-east-1", ClientToken="copy-1",
        TagSpecifications=tags("image", build="b1") + tags("snapshot", build="b1"))["ImageId"]))
    observe("copy it again with the token", lambda: west.copy_image(
        Name="kiln-web", SourceImageId=image, SourceRegion="us-east-1", ClientToken="copy-1",
        TagSpecifications=tags("image", build="b1") + tags("snapshot", build="b1"))["ImageId"] == copy)
    described = lambda: west.describe_images(ImageIds=[copy])["Images"][0]
    observe("the copy's", lambda: [described().get(key) for key in ("Name", "BootMode", "SourceImageRegion")])
    observe("the copy's tags", lambda: [tag["Value"] for tag in described().get("Tags", [])])
    observe("the copy's snapshot", lambda: west.describe_snapshots(
        SnapshotIds=[described()["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]])["Snapshots"][0]["VolumeSize"])
    observe("copy a snapshot", lambda: west.copy_snapshot(
        SourceRegion="us-east-1", SourceSnapshotId=snapshot, Encrypted=True)["SnapshotId"].startswith("snap-"))
    observe("copy what is not there", lambda: bool(west.copy_image(
        Name="kiln-none", SourceImageId="ami-00000000000000000", SourceRegion="us-east-1")))


KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILNnTvTM5oAcuLEBjSlA6PmHcCcU6ERFLlvZkFGEUG4I kiln"


def access():
    observe("import a key", lambda: ec2.import_key_pair(KeyName="kiln", PublicKeyMaterial=KEY)["KeyName"])
    observe("import it again", lambda: bool(ec2.import_key_pair(KeyName="kiln", PublicKeyMaterial=KEY)))
    observe("import no key", lambda: bool(ec2.import_key_pair(KeyName="bad", PublicKeyMaterial=b"hello")))
    observe("the key", lambda: [ec2.describe_key_pairs(KeyNames=["kiln"])["KeyPairs"][0][k] for k in ("KeyName", "KeyType")])
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = observe("create a group", lambda: (lambda i: (i.startswith("sg-"), i))(ec2.create_security_group(
        GroupName="kiln", Description="a bake", VpcId=vpc)["GroupId"]))
    observe("its name again", lambda: bool(ec2.create_security_group(GroupName="kiln", Description="x", VpcId=vpc)))
    rule = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.7/32"}]}]
    observe("open it", lambda: ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)["Return"])
    observe("open it again", lambda: bool(ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)))
    observe("what is open", lambda: [[p["FromPort"], p["IpRanges"][0]["CidrIp"]] for p in ec2.describe_security_groups(
        GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]])
    return group


def instances(image, group):
    run = dict(
        ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1, KeyName="kiln", SecurityGroupIds=[group],
        UserData="#!/bin/sh", ClientToken="run-1", InstanceInitiatedShutdownBehavior="terminate",
        MetadataOptions={"HttpTokens": "required"}, TagSpecifications=tags("instance", build="b1"),
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "Encrypted": True}}])
    instance = observe("run an instance", lambda: (lambda i: (i["State"]["Name"] in ("pending", "running"), i["InstanceId"]))(
        ec2.run_instances(**run)["Instances"][0]))
    observe("run it again with the token", lambda: ec2.run_instances(**run)["Instances"][0]["InstanceId"] == instance)
    observe("the token for another type", lambda: bool(ec2.run_instances(**{**run, "InstanceType": "t3.small"})))
    observe("an unknown type", lambda: bool(ec2.run_instances(ImageId=image, InstanceType="z9.huge", MinCount=1, MaxCount=1)))
    observe("another architecture", lambda: bool(ec2.run_instances(
        ImageId=image, InstanceType="t4g.small", MinCount=1, MaxCount=1)))
    observe("an unknown key", lambda: bool(ec2.run_instances(
        ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1, KeyName="nobody")))
    observe("a dry run", lambda: bool(ec2.run_instances(
        ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1, DryRun=True)))
    described = lambda: ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    observe("the instance", lambda: [described()[k] for k in ("InstanceType", "KeyName", "RootDeviceName", "Architecture")])
    observe("its metadata", lambda: described()["MetadataOptions"]["HttpTokens"])
    observe("its state", lambda: described()["State"]["Name"])
    observe("its tags", lambda: [tag["Value"] for tag in described()["Tags"]])
    volume = observe("its volume", lambda: (lambda v: ([v["Size"], v["Encrypted"]], v["VolumeId"]))(ec2.describe_volumes(
        VolumeIds=[described()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]])["Volumes"][0]))
    observe("its console", lambda: isinstance(ec2.get_console_output(InstanceId=instance).get("Output", ""), str))
    observe("delete the group in use", lambda: bool(ec2.delete_security_group(GroupId=group)))
    observe("stop", lambda: ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"][0]["PreviousState"]["Name"])
    observe("stopped", lambda: described()["State"]["Name"])
    baked = observe("create an image", lambda: (lambda i: (i.startswith("ami-"), i))(ec2.create_image(
        InstanceId=instance, Name="kiln-baked", TagSpecifications=tags("image", build="b2") + tags("snapshot", build="b2"))["ImageId"]))
    if baked:
        observe("its root", lambda: [ec2.describe_images(ImageIds=[baked])["Images"][0]["BlockDeviceMappings"][0]["Ebs"].get(k)
                                     for k in ("VolumeSize", "Encrypted")])
    observe("terminate", lambda: bool(ec2.terminate_instances(InstanceIds=[instance])))
    observe("terminate again", lambda: bool(ec2.terminate_instances(InstanceIds=[instance])))
    observe("terminated", lambda: described()["State"]["Name"])
    observe("its volume is gone", lambda: bool(ec2.describe_volumes(VolumeIds=[volume])["Volumes"]))
    observe("delete the group", lambda: bool(ec2.delete_security_group(GroupId=group)))
    observe("delete the key", lambda: bool(ec2.delete_key_pair(KeyName="kiln")))
    observe("delete it again", lambda: bool(ec2.delete_key_pair(KeyName="kiln")))


def places():
    observe("zones", lambda: [z["ZoneName"] for z in ec2.describe_availability_zones()["AvailabilityZones"]][:3])
    observe("the default network", lambda: ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["IsDefault"])
    observe("a subnet in each zone", lambda: sorted({s["AvailabilityZone"] for s in ec2.describe_subnets()["Subnets"]})[:3])
    observe("where a type is", lambda: sorted({o["Location"] for o in ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["m6i.large"]}])["InstanceTypeOfferings"]})[:3])
    observe("what a type is", lambda: ec2.describe_instance_types(
        InstanceTypes=["t4g.small"])["InstanceTypes"][0]["ProcessorInfo"]["SupportedArchitectures"])


def templates(image):
    made = observe("a launch template", lambda: (lambda t: (
        [t["DefaultVersionNumber"], t["LatestVersionNumber"]], t["LaunchTemplateId"]))(ec2.create_launch_template(
            LaunchTemplateName="web", LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro",
            "MetadataOptions": {"HttpTokens": "required"}})["LaunchTemplate"]))
    observe("its name again", lambda: bool(ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": image})))
    observe("a version", lambda: ec2.create_launch_template_version(
        LaunchTemplateId=made, SourceVersion="1", LaunchTemplateData={"ImageId": "ami-0123456789abcdef0"}
    )["LaunchTemplateVersion"]["VersionNumber"])
    observe("what it inherits", lambda: [ec2.describe_launch_template_versions(LaunchTemplateId=made, Versions=["2"])[
        "LaunchTemplateVersions"][0]["LaunchTemplateData"].get(k) for k in ("ImageId", "InstanceType")])
    observe("a version that is not there", lambda: bool(ec2.describe_launch_template_versions(
        LaunchTemplateId=made, Versions=["9"])["LaunchTemplateVersions"]))
    observe("the default", lambda: ec2.modify_launch_template(
        LaunchTemplateId=made, DefaultVersion="2")["LaunchTemplate"]["DefaultVersionNumber"])
    return made


def refreshes(template):
    observe("a group", lambda: bool(scaling.create_auto_scaling_group(
        AutoScalingGroupName="web", MinSize=1, MaxSize=4, DesiredCapacity=2, AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateId": template, "Version": "1"})))
    observe("its template", lambda: scaling.describe_auto_scaling_groups(
        AutoScalingGroupNames=["web"])["AutoScalingGroups"][0]["LaunchTemplate"]["Version"])
    observe("no group", lambda: len(scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["none"])["AutoScalingGroups"]))
    wanted = {"LaunchTemplate": {"LaunchTemplateId": template, "Version": "2"}}
    observe("roll back nothing", lambda: bool(scaling.rollback_instance_refresh(AutoScalingGroupName="web")))
    observe("start a refresh", lambda: bool(scaling.start_instance_refresh(
        AutoScalingGroupName="web", DesiredConfiguration=wanted, Preferences={"AutoRollback": True})))
    observe("start another", lambda: bool(scaling.start_instance_refresh(AutoScalingGroupName="web")))
    observe("its status", lambda: [scaling.describe_instance_refreshes(
        AutoScalingGroupName="web")["InstanceRefreshes"][0][k] for k in ("Status", "Strategy")])
    observe("roll it back", lambda: bool(scaling.rollback_instance_refresh(AutoScalingGroupName="web")))
    observe("its status now", lambda: scaling.describe_instance_refreshes(
        AutoScalingGroupName="web")["InstanceRefreshes"][0]["Status"])
    observe("cancel it", lambda: bool(scaling.cancel_instance_refresh(AutoScalingGroupName="web")))
    observe("cancel it again", lambda: bool(scaling.cancel_instance_refresh(AutoScalingGroupName="web")))


def parameters(image):
    name = "/kiln/web/stable"
    observe("put a parameter", lambda: ssm.put_parameter(Name=name, Value="one", Type="String")["Version"])
    observe("put it again", lambda: bool(ssm.put_parameter(Name=name, Value="two", Type="String")))
    observe("overwrite it", lambda: ssm.put_parameter(Name=name, Value="two", Type="String", Overwrite=True)["Version"])
    observe("the parameter", lambda: [ssm.get_parameter(Name=name)["Parameter"][k] for k in ("Value", "Version", "Type")])
    observe("its first version", lambda: ssm.get_parameter(Name=name + ":1")["Parameter"]["Value"])
    observe("its ninth version", lambda: bool(ssm.get_parameter(Name=name + ":9")))
    observe("a parameter that is not there", lambda: bool(ssm.get_parameter(Name="/kiln/none")))
    observe("an image parameter that is none", lambda: bool(ssm.put_parameter(
        Name="/kiln/bad", Value="hello", Type="String", DataType="aws:ec2:image")))
    observe("an image parameter", lambda: ssm.put_parameter(
        Name="/kiln/web/image", Value=image, Type="String", DataType="aws:ec2:image")["Version"])
    observe("by path", lambda: [p["Name"] for p in ssm.get_parameters_by_path(Path="/kiln", Recursive=True)["Parameters"]])
    observe("several", lambda: (lambda r: [len(r["Parameters"]), r["InvalidParameters"]])(
        ssm.get_parameters(Names=[name, "/kiln/none"])))
    observe("a reserved name", lambda: bool(ssm.put_parameter(Name="/aws/x", Value="1", Type="String")))


def the_end(image, snapshot, child):
    observe("disable", lambda: ec2.disable_image(ImageId=image)["Return"])
    observe("listed although disabled", lambda: len(ec2.describe_images(Owners=["self"], Filters=[
        {"Name": "name", "Values": ["kiln-web"]}])["Images"]))
    observe("tags of it all", lambda: sorted({t["ResourceType"] for t in ec2.describe_tags(
        Filters=[{"Name": "key", "Values": ["build"]}])["Tags"]}))
    observe("take a tag away", lambda: bool(ec2.delete_tags(Resources=[image], Tags=[{"Key": "build"}])))
    observe("deregister", lambda: bool(ec2.deregister_image(ImageId=image)))
    observe("deregister again", lambda: bool(ec2.deregister_image(ImageId=image)))
    observe("delete the snapshot", lambda: bool(ec2.delete_snapshot(SnapshotId=snapshot)))
    observe("delete it again", lambda: bool(ec2.delete_snapshot(SnapshotId=snapshot)))
    observe("the child reads on", lambda: len(ebs.list_snapshot_blocks(SnapshotId=child)["Blocks"]))
    observe("an action that kiln does not use", lambda: bool(ec2.describe_fleets()))


identity()
places()
snapshot, blocks = upload()
child = delta(snapshot, blocks)
image = images(snapshot)
attributes(image)
copies(image, snapshot)
instances(image, access())
template = templates(image)
refreshes(template)
parameters(image)
the_end(image, snapshot, child)
