//! The HTTP side: reads a request whole, meets the fault of the schedule, answers in the protocol of the service.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    autoscaling, ebs, ec2,
    fault::{Fault, Schedule},
    ledger::Entry,
    machines::Machines,
    refusal::Refusal,
    request::{Caller, Input, Service, decode},
    ssm, sts,
    world::World,
};

/// What the server and the tests share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Mutex<World>,
    pub(crate) schedule: Mutex<Schedule>,
    pub(crate) ledger: Mutex<Vec<Entry>>,
    pub(crate) machines: Mutex<Arc<dyn Machines>>,
    /// Accounts by access key; any other key belongs to [`crate::Fake::ACCOUNT`].
    pub(crate) accounts: Mutex<Vec<(String, String)>>,
    /// Regions that the accounts have not enabled.
    pub(crate) disabled: Mutex<BTreeSet<String>>,
    /// The actions that callers have a right to, if not to all.
    pub(crate) allowed: Mutex<Option<BTreeSet<String>>>,
    /// Access keys of all callers so far, and of those that were killed.
    pub(crate) callers: Mutex<BTreeSet<String>>,
    pub(crate) dead: watch::Sender<BTreeSet<String>>,
    /// Calls that are being answered.
    pub(crate) busy: watch::Sender<usize>,
}

/// Locks whatever happened to an earlier holder: a failed test must not hide behind a poisoned lock.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reply that is no refusal.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: 200, content_type, headers: Vec::new(), body: body.into() }
    }
}

/// What becomes of the connection.
enum Reply {
    Answer(Answer),
    Refusal(Service, Refusal),
    Cut,
    Hang,
}

impl Shared {
    pub(crate) fn account_of(&self, access_key: &str) -> String {
        let accounts = lock(&self.accounts);
        let known = accounts.iter().find(|(key, _)| key == access_key);
        known.map_or_else(|| crate::Fake::ACCOUNT.to_owned(), |(_, account)| account.clone())
    }

    /// Does what is asked in the name of `account`, whatever the schedule says.
    pub(crate) fn perform(
        &self,
        place: (&str, &str),
        service: Service,
        action: &str,
        input: Input,
        fault: Option<Fault>,
    ) -> Result<Answer, Refusal> {
        // Hashed before the lock is taken, so that uploads run side by side.
        let digest = if let Input::Rest(rest) = &input { ebs::digest(rest) } else { None };
        let mut world = lock(&self.world);
        let (account, region) = place;
        world.enter(account, region, fault.clone());
        let number = lock(&self.ledger).len() as u64 + 1;
        let request = format!("kiln-fake-{number:08}");
        let result = match input {
            Input::Form(form) => match service {
                Service::AutoScaling => autoscaling::answer(&mut world, action, form, &request),
                Service::Sts => sts::answer(&world, action, form, &request),
                _ => ec2::answer(&mut world, action, form, &request, &lock(&self.machines).clone()),
            },
            Input::Json(input) => ssm::answer(&mut world, action, input),
            Input::Rest(rest) => ebs::answer(&mut world, action, rest, digest),
        };
        let entry = Entry {
            number,
            account: account.to_owned(),
            region: region.to_owned(),
            action: action.to_owned(),
            fault,
            refused: result.as_ref().err().map(|refusal| refusal.code.clone()),
            created: std::mem::take(&mut world.created),
            deleted: std::mem::take(&mut world.deleted),
        };
        lock(&self.ledger).push(entry);
        let launches = std::mem::take(&mut world.launches);
        let (stops, ends) = (std::mem::take(&mut world.stops), std::mem::take(&mut world.ends));
        drop(world);
        let machines = lock(&self.machines).clone();
        for launch in launches {
            if let Some(address) = machines.start(&launch) {
                lock(&self.world).readdress((region, account), &launch.instance, &address);
            }
        }
        for instance in &stops {
            machines.stop(instance);
        }
        for instance in &ends {
            machines.terminate(instance);
        }
        result
    }

    fn kill(&self, caller: &Caller) {
        self.dead.send_modify(|dead| {
            dead.insert(caller.access_key.clone());
        });
    }

    /// A call that never reached the service.
    fn record(&self, place: (&str, &str), action: &str, fault: Fault, refused: Option<String>) {
        let mut ledger = lock(&self.ledger);
        let number = ledger.len() as u64 + 1;
        ledger.push(Entry {
            number,
            account: place.0.to_owned(),
            region: place.1.to_owned(),
            action: action.to_owned(),
            fault: Some(fault),
            refused,
            created: Vec::new(),
            deleted: Vec::new(),
        });
    }

    fn reply(&self, caller: &Caller, action: &str, input: Input) -> Reply {
        self.busy.send_modify(|calls| *calls += 1);
        let reply = self.decide(caller, action, input);
        self.busy.send_modify(|calls| *calls -= 1);
        reply
    }

    fn decide(&self, caller: &Caller, action: &str, input: Input) -> Reply {
        lock(&self.callers).insert(caller.access_key.clone());
        if self.dead.borrow().contains(&caller.access_key) {
            return Reply::Hang;
        }
        let (account, service) = (self.account_of(&caller.access_key), caller.service);
        let place = (account.as_str(), caller.region.as_str());
        if lock(&self.disabled).contains(&caller.region) {
            return Reply::Refusal(service, Refusal::nobody(service));
        }
        let right = format!("{}:{action}", service.name());
        // Who one is, everybody may ask.
        let may =
            service == Service::Sts || lock(&self.allowed).as_ref().is_none_or(|allowed| allowed.contains(&right));
        let denied = Some(Fault::AccessDenied).filter(|_| !may);
        let fault = denied.or_else(|| lock(&self.schedule).next(action));
        if let Some(fault) = &fault {
            if let Some(refusal) = fault.refusal(service) {
                self.record(place, action, fault.clone(), Some(refusal.code.clone()));
                return Reply::Refusal(service, refusal);
            }
            if matches!(fault, Fault::Cut | Fault::Hang | Fault::Kill) {
                self.record(place, action, fault.clone(), None);
                if *fault == Fault::Kill {
                    self.kill(caller);
                }
                return if *fault == Fault::Cut { Reply::Cut } else { Reply::Hang };
            }
        }
        let result = self.perform(place, service, action, input, fault.clone());
        if fault == Some(Fault::KillAfter) {
            self.kill(caller);
            return Reply::Hang;
        }
        if fault == Some(Fault::LoseReply) {
            return Reply::Cut;
        }
        match (fault.and_then(|fault| fault.refusal_after(service)), result) {
            (Some(refusal), _) | (None, Err(refusal)) => Reply::Refusal(service, refusal),
            (None, Ok(answer)) => Reply::Answer(answer),
        }
    }
}

/// Answers until it is told to stop.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            let service = service_fn(|request| answer(shared.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A connection that ends early is the client's affair, or a fault of the schedule.
            tokio::select! { () = stop.cancelled() => {}, _ = connection => {} }
        });
    }
}

/// An error cuts the connection.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let reply = match Caller::of(&head.headers) {
        Err(refusal) => Reply::Refusal(Service::Ec2, refusal),
        Ok(caller) => match decode(caller.service, &head.method, &head.uri, head.headers, body) {
            Err(refusal) => Reply::Refusal(caller.service, refusal),
            Ok((action, input)) => {
                let replied = tokio::task::spawn_blocking(move || shared.reply(&caller, &action, input)).await;
                replied.map_err(io::Error::other)?
            }
        },
    };
    let request_id = "kiln-fake";
    let (status, content_type, headers, body) = match reply {
        Reply::Answer(answer) => (answer.status, answer.content_type, answer.headers, answer.body),
        Reply::Refusal(service, refusal) => {
            let (content_type, headers, body) = refusal.render(service, request_id);
            (refusal.status, content_type, headers, Bytes::from(body))
        }
        Reply::Cut => return Err(io::ErrorKind::ConnectionReset.into()),
        Reply::Hang => {
            return Ok(std::future::pending::<Result<_, Infallible>>().await.unwrap_or_else(|never| match never {}));
        }
    };
    let mut response = Response::builder().status(status).header("content-type", content_type);
    response = response.header("x-amzn-requestid", request_id);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Full::new(body)).map_err(io::Error::other)
}
