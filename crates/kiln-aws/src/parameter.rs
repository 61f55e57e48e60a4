//! An AMI behind a name in Parameter Store, so that launch templates and Terraform follow a channel.

use aws_sdk_ssm::types::ParameterType;

use crate::{
    Region,
    call::{Age, Look},
    error::AwsError,
};

/// EC2 checks that the value is an AMI.
const DATA_TYPE: &str = "aws:ec2:image";

impl Region {
    /// Points the parameter `name` to `ami`. What it said before.
    pub async fn point_parameter(&self, name: &str, ami: &str) -> Result<Option<String>, AwsError> {
        let before = self.parameter(name).await?;
        if before.as_deref() == Some(ami) {
            return Ok(before);
        }
        // EC2's check of one that nothing can start from fails without a word, and the old value stands.
        self.available(ami).await?;
        let put = || {
            let request = self.ssm.put_parameter().name(name).value(ami).r#type(ParameterType::String);
            request.data_type(DATA_TYPE).overwrite(true).send()
        };
        self.caller.call("PutParameter", Age::New, put).await?;
        // EC2's check comes after the answer, and until it is done the old value stands. That it failed, nobody says.
        let look = || async {
            let now = self.parameter(name).await?;
            Ok(if now.as_deref() == Some(ami) { Look::Done(()) } else { Look::Under(now.unwrap_or_default()) })
        };
        match self.caller.wait_for("the parameter", self.caller.patience.check(), look).await {
            Err(AwsError::Stalled { region, state: now, .. }) => {
                let (name, ami) = (name.to_owned(), ami.to_owned());
                return Err(AwsError::Parameter { name, region, ami, now });
            }
            waited => waited?,
        }
        Ok(before)
    }

    pub(crate) async fn parameter(&self, name: &str) -> Result<Option<String>, AwsError> {
        let read = || self.ssm.get_parameter().name(name).send();
        match self.caller.call("GetParameter", Age::Old, read).await {
            Ok(answer) => Ok(answer.parameter.and_then(|parameter| parameter.value)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
