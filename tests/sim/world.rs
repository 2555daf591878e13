//! Carries out a plan: starts Redis, nodes and clients, does to each what the plan says, mends everything, and has the
//! model judge.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    task::JoinSet,
    time::sleep,
};

use crate::{
    client::{Client, ClientOrder, ORDERS, Transcript},
    harness::{Redis, until},
    line::Line,
    model::{Case, Coverage, Entry, Finding, Noted, Outage, Verdict, judge},
    node::Node,
    plan::{Audience, ClientPlan, FaultKind, Plan},
    publisher::{Clock, Publisher},
    report::Report,
};

/// How long the notice of a gap may take: gaps within ten seconds are told together.
const NOTICE: Duration = Duration::from_secs(12);

/// How long a closing message is waited for before another one is published: a session that began after it does not get
/// it.
const CLOSING: Duration = Duration::from_secs(2);

/// Closing messages for one client before it counts as stuck.
const MAX_CLOSINGS: usize = 20;

/// How long a line may take to be as it was after it was silent.
const AFTER_SILENCE: Duration = Duration::from_secs(3);

struct World {
    clock: Clock,
    redis: AsyncMutex<Redis>,
    lines: Vec<Line>,
    nodes: Vec<Node>,
    publisher: AsyncMutex<Publisher>,
    coverage: Mutex<Coverage>,
    orders: Vec<mpsc::Sender<ClientOrder>>,
    transcripts: Vec<Transcript>,
}

/// Runs a plan.
pub(crate) async fn run(plan: &Plan) -> Report {
    let redis = Redis::start().await;
    let mut lines = Vec::new();
    for _ in 0..plan.nodes {
        lines.push(Line::to(redis.port()).await);
    }
    let nodes: Vec<_> = lines.iter().map(|line| Node::new(line.url())).collect();
    for node in &nodes {
        node.up().await;
        node.ready().await;
    }
    let clock = Clock::start();
    let mut publisher = Publisher::new(clock, redis.url(), plan.clients.len());
    for (user, client) in plan.clients.iter().enumerate() {
        publisher.write_user(user, &client.groups).await;
    }
    let mut clients = JoinSet::new();
    let (orders, transcripts) = start_clients(plan, &nodes, clock, &mut clients);
    let coverage = Mutex::new(Coverage { nodes: plan.nodes, outages: Vec::new() });
    let (redis, publisher) = (AsyncMutex::new(redis), AsyncMutex::new(publisher));
    let world = Rc::new(World { clock, redis, lines, nodes, publisher, coverage, orders, transcripts });

    world.live(plan).await;
    let stuck = world.close().await;
    let mut verdicts = world.judge().await;
    let is_loss = |finding: &Finding| matches!(finding, Finding::Lost { .. });
    if verdicts.iter().any(|verdict| verdict.findings.iter().any(is_loss)) {
        sleep(NOTICE).await;
        verdicts = world.judge().await;
    }
    while let Some(ended) = clients.try_join_next() {
        ended.expect("a client that does not panic");
    }
    drop(clients);
    let mut broken: Vec<String> = stuck.iter().map(|client| format!("client {client} is stuck")).collect();
    let mut logs = Vec::new();
    for (number, node) in world.nodes.iter().enumerate() {
        let (complaints, log) = node.end().await;
        broken.extend(complaints.iter().map(|complaint| format!("node {number}: {complaint}")));
        logs.push(log);
    }
    let publisher = world.publisher.lock().await;
    let coverage = world.coverage.lock().unwrap().clone();
    let transcripts = world.transcripts.iter().map(read).collect();
    let mut report = Report::new(plan, &publisher, coverage, verdicts, broken, transcripts);
    report.logs = logs;
    report
}

fn start_clients(
    plan: &Plan,
    nodes: &[Node],
    clock: Clock,
    tasks: &mut JoinSet<()>,
) -> (Vec<mpsc::Sender<ClientOrder>>, Vec<Transcript>) {
    let nodes: Arc<[SocketAddr]> = nodes.iter().map(Node::address).collect();
    let start = |(user, client): (usize, &ClientPlan)| {
        let (sender, orders) = mpsc::channel(ORDERS);
        let (transcript, nodes) = (Transcript::default(), Arc::clone(&nodes));
        let (narrow, node) = (client.narrow, client.node);
        let shared = Arc::clone(&transcript);
        let client = Client { user, narrow, node, nodes, clock, transcript, orders, session: None, held: None };
        tasks.spawn_local(client.live());
        (sender, shared)
    };
    plan.clients.iter().enumerate().map(start).unzip()
}

fn read(transcript: &Transcript) -> Vec<Noted> {
    transcript.lock().unwrap().clone()
}

impl World {
    /// All that the plan says.
    async fn live(self: &Rc<Self>, plan: &Plan) {
        let mut tasks = JoinSet::new();
        for faults in plan.by_target().into_values() {
            let faults: Vec<_> = faults.into_iter().cloned().collect();
            let world = Rc::clone(self);
            tasks.spawn_local(async move {
                for fault in faults {
                    world.clock.until(fault.at).await;
                    world.suffer(fault.kind).await;
                }
            });
        }
        for publication in &plan.publications {
            self.clock.until(publication.at).await;
            self.publisher.lock().await.publish(publication.to, publication.size).await;
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a fault that can be carried out");
        }
    }

    async fn suffer(&self, kind: FaultKind) {
        let cause = kind.name();
        match kind {
            FaultKind::Kill { node, down } => {
                let outage = self.begin(node, cause);
                self.nodes[node].kill().await;
                self.start_again(node, down, outage).await;
            }
            FaultKind::Drain { node, down } => {
                let outage = self.begin(node, cause);
                self.nodes[node].drain().await;
                self.start_again(node, down, outage).await;
            }
            FaultKind::RedisRestart { in_order, down } => self.restart_redis(in_order, down, cause).await,
            FaultKind::RedisFreeze { lasts } => {
                self.redis.lock().await.freeze();
                sleep(lasts).await;
                self.redis.lock().await.thaw();
            }
            FaultKind::LineCut { node } => {
                self.interrupt(node, cause, Line::cut, Duration::ZERO).await;
            }
            FaultKind::LineHalved { node } => {
                self.interrupt(node, cause, Line::halve, Duration::ZERO).await;
            }
            FaultKind::LineDown { node, lasts } => {
                let down = |line: &Line| {
                    line.down(true);
                    line.cut();
                };
                self.interrupt(node, cause, down, lasts).await;
            }
            FaultKind::LineSilent { node, lasts } => {
                let outage = self.begin(node, cause);
                self.lines[node].silence(true);
                sleep(lasts).await;
                self.lines[node].silence(false);
                sleep(AFTER_SILENCE).await;
                self.nodes[node].ready().await;
                self.end(outage);
            }
            FaultKind::LineSlow { node, delay, lasts } => {
                self.lines[node].slow(delay);
                sleep(lasts).await;
                self.lines[node].slow(Duration::ZERO);
            }
            FaultKind::ClientAway { client, lasts, to } => {
                let _ = self.orders[client].send(ClientOrder::Leave { away: lasts, to }).await;
            }
            FaultKind::ClientSlow { client, lasts } => {
                let _ = self.orders[client].send(ClientOrder::Stall(lasts)).await;
            }
            FaultKind::Rooms { client, groups } => self.publisher.lock().await.write_user(client, &groups).await,
        }
    }
}

impl World {
    /// The node may not hear everything from now on; returns what ends that.
    fn begin(&self, node: usize, cause: &'static str) -> usize {
        let outages = &mut self.coverage.lock().unwrap().outages;
        outages.push(Outage { node, cause, from: self.clock.now(), to: Duration::MAX });
        outages.len() - 1
    }

    fn end(&self, outage: usize) {
        self.coverage.lock().unwrap().outages[outage].to = self.clock.now();
    }

    async fn start_again(&self, node: usize, down: Duration, outage: usize) {
        sleep(down).await;
        self.nodes[node].up().await;
        self.nodes[node].ready().await;
        self.end(outage);
    }

    /// Does to a line what ends the node's subscription.
    async fn interrupt(&self, node: usize, cause: &'static str, fault: impl FnOnce(&Line), lasts: Duration) {
        let subscriptions = self.lines[node].subscriptions();
        let outage = self.begin(node, cause);
        fault(&self.lines[node]);
        sleep(lasts).await;
        self.lines[node].down(false);
        self.lines[node].subscribed_since(subscriptions).await;
        self.nodes[node].ready().await;
        self.end(outage);
    }

    async fn restart_redis(&self, in_order: bool, down: Duration, cause: &'static str) {
        let mut redis = self.redis.lock().await;
        let mut outages = Vec::new();
        {
            let mut publisher = self.publisher.lock().await;
            // What Redis has confirmed and not sent yet would be lost, and nothing could tell that.
            publisher.barrier().await;
            // Nothing is published from here on, so it does not matter that lines are closed a little sooner.
            for line in &self.lines {
                line.refuse(true).await;
            }
            outages.extend((0..self.nodes.len()).map(|node| self.begin(node, cause)));
            if in_order {
                redis.shut_down().await;
            } else {
                // Published or not: nobody can know.
                tokio::join!(publisher.publish(Audience::Everyone, 0), async { redis.kill() });
            }
        }
        sleep(down).await;
        redis.up().await;
        for line in &self.lines {
            line.refuse(false).await;
        }
        for (node, outage) in self.nodes.iter().zip(outages) {
            node.ready().await;
            self.end(outage);
        }
    }

    /// Waits until every client has got a message that was published after all faults; returns those that never do.
    async fn close(&self) -> Vec<usize> {
        for node in &self.nodes {
            node.ready().await;
        }
        let first = self.publisher.lock().await.publications.len();
        let open = || {
            let clients = 0..self.transcripts.len();
            clients.filter(|&client| !is_closed(&read(&self.transcripts[client]), first)).collect::<Vec<_>>()
        };
        for _ in 0..MAX_CLOSINGS {
            let clients = open();
            if clients.is_empty() {
                break;
            }
            for client in clients {
                self.publisher.lock().await.publish(Audience::User(client), 0).await;
            }
            let end = self.clock.now() + CLOSING;
            until("the closing messages", async || open().is_empty() || self.clock.now() > end).await;
        }
        open()
    }

    async fn judge(&self) -> Vec<Verdict> {
        let publisher = self.publisher.lock().await;
        let coverage = self.coverage.lock().unwrap().clone();
        let judge = |(user, transcript)| {
            let publications = &publisher.publications;
            let transcript = &read(transcript);
            judge(&Case { publications, coverage: &coverage, keys: &publisher.keys[user], user, transcript })
        };
        self.transcripts.iter().enumerate().map(judge).collect()
    }
}

/// Whether a message for the user with this number or a later one came on a connection that was welcomed.
fn is_closed(transcript: &[Noted], first: usize) -> bool {
    let is_later = |noted: &Noted| matches!(&noted.entry, Entry::Got { number, room } if *number >= first && room.starts_with("user-"));
    let came = transcript.iter().any(is_later);
    let last = transcript.iter().rev().find_map(|noted| match noted.entry {
        Entry::Welcome { .. } => Some(true),
        Entry::Dialled { .. } | Entry::Ended => Some(false),
        _ => None,
    });
    came && last == Some(true)
}
