//! Who we are, and a client for each region.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aws_config::{BehaviorVersion, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::config::{Credentials, ProvideCredentials as _};
use kiln_io::{ledger::Ledger, time::Clock};
use tokio_util::sync::CancellationToken;

use crate::{
    Patience, Watch,
    call::{Age, Caller, innermost},
    error::AwsError,
    pace::Pace,
};

/// A connection that is not made by then is not made at all.
const CONNECT: Duration = Duration::from_secs(10);

/// How an account is reached.
#[derive(Debug)]
pub struct Access {
    /// Instead of AWS: the address of something that speaks its protocols, and its key.
    pub stand_in: Option<StandIn>,
    pub clock: Arc<dyn Clock>,
    pub cancel: CancellationToken,
    pub patience: Patience,
    pub watch: Arc<dyn Watch>,
}

/// Where an emulation of AWS is, and an access key that it takes.
#[derive(Debug, Clone)]
pub struct StandIn {
    pub url: String,
    pub key: String,
    pub secret: String,
}

/// An account, as its credentials open it.
#[derive(Debug)]
pub struct Account {
    /// Twelve digits.
    pub number: String,
    config: SdkConfig,
    access: Access,
}

/// One region of an account.
#[derive(Debug)]
pub struct Region {
    pub account: String,
    pub name: String,
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ebs: aws_sdk_ebs::Client,
    pub(crate) ssm: aws_sdk_ssm::Client,
    pub(crate) autoscaling: aws_sdk_autoscaling::Client,
    pub(crate) caller: Caller,
}

impl Region {
    /// The same for what is made for the build of `ledger`.
    pub(crate) fn on_behalf_of(mut self, ledger: &Ledger) -> Self {
        self.caller.activity = Some(ledger.activity());
        self
    }

    /// The same for what is done after somebody asked to stop.
    pub(crate) fn afterwards(&self) -> Self {
        Self {
            account: self.account.clone(),
            name: self.name.clone(),
            ec2: self.ec2.clone(),
            ebs: self.ebs.clone(),
            ssm: self.ssm.clone(),
            autoscaling: self.autoscaling.clone(),
            caller: self.caller.afterwards(),
        }
    }

    /// How long ago something was made that nobody knows of: certainly long enough, when no request is in doubt.
    pub(crate) fn seen_since(&self) -> Duration {
        if self.caller.doubtful.load(Ordering::Relaxed) { Duration::ZERO } else { self.caller.patience.visible }
    }
}

impl Account {
    /// Asks whose the credentials of the environment are. `region` is where it asks.
    pub async fn open(access: Access, region: &str) -> Result<Self, AwsError> {
        Self::open_in(access, &[region]).await
    }

    /// The same in one of `regions`: one that is not enabled in the account knows nobody, and keeps nothing from being done in the others.
    pub async fn open_in<R: AsRef<str>>(access: Access, regions: &[R]) -> Result<Self, AwsError> {
        let first = regions.first().map_or("us-east-1", AsRef::as_ref);
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT);
        let timeouts = timeouts.operation_attempt_timeout(access.patience.attempt).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .region(aws_config::Region::new(first.to_owned()));
        if let Some(StandIn { url, key, secret }) = &access.stand_in {
            let credentials = Credentials::new(key, secret, None, None, "kiln");
            loader = loader.endpoint_url(url).credentials_provider(credentials);
        }
        let config = loader.load().await;
        // Without credentials not one request leaves, and the SDK does not tell that from a connection that broke.
        if let Some(provider) = config.credentials_provider() {
            let found = provider.provide_credentials().await;
            found.map_err(|error| AwsError::NoCredentials { reason: innermost(&error) })?;
        }
        let mut account = Self { number: String::new(), config, access };
        let mut refused = None;
        for region in regions.iter().map(AsRef::as_ref).chain(regions.is_empty().then_some(first)) {
            match account.number_in(region).await {
                Ok(number) => {
                    account.number = number;
                    return Ok(account);
                }
                Err(error @ AwsError::Refused { .. }) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or(AwsError::Stopped))
    }

    async fn number_in(&self, region: &str) -> Result<String, AwsError> {
        let caller = self.caller(region);
        let config = self.config.to_builder().region(aws_config::Region::new(region.to_owned())).build();
        let sts = aws_sdk_sts::Client::new(&config);
        let identity = caller.call("GetCallerIdentity", Age::Old, || sts.get_caller_identity().send()).await?;
        identity.account.ok_or_else(|| caller.incomplete("GetCallerIdentity", "Account"))
    }

    /// How long the credentials are good for, where that is known.
    pub async fn time_left(&self) -> Option<Duration> {
        let credentials = self.config.credentials_provider()?.provide_credentials().await.ok()?;
        Some(credentials.expiry()?.duration_since(self.access.clock.wall()).unwrap_or_default())
    }

    /// The clients of one region.
    pub fn region(&self, name: &str) -> Region {
        let region = aws_config::Region::new(name.to_owned());
        let config = self.config.to_builder().region(region).build();
        Region {
            account: self.number.clone(),
            name: name.to_owned(),
            ec2: aws_sdk_ec2::Client::new(&config),
            ebs: aws_sdk_ebs::Client::new(&config),
            ssm: aws_sdk_ssm::Client::new(&config),
            autoscaling: aws_sdk_autoscaling::Client::new(&config),
            caller: self.caller(name),
        }
    }

    fn caller(&self, region: &str) -> Caller {
        Caller {
            region: region.to_owned(),
            clock: self.access.clock.clone(),
            cancel: self.access.cancel.clone(),
            patience: self.access.patience,
            pace: Pace::up_to(self.access.patience.retry.max / 4),
            watch: self.access.watch.clone(),
            activity: None,
            doubtful: Arc::default(),
        }
    }
}
