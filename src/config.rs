//! Answers for every setting: each variable is read once, checked, and kept in a typed section. All mistakes are
//! reported together, so that one failed start is enough to mend them all.
//!
//! Must not know what the settings are used for, open a connection, or log. The environment comes in as a value
//! ([`Environment`]); the process's own is read in one place, [`Environment::process`].

mod environment;
mod mistake;
mod networks;
mod origin;
mod parse;
mod rails;
mod reader;
mod redis_url;
mod secret;
mod sections;
mod sentinel;
mod summary;
#[cfg(test)]
mod tests;
mod variable;

pub use self::{
    environment::Environment,
    mistake::{Mistake, Mistakes},
    networks::Networks,
    origin::AllowedOrigin,
    rails::{RAILS_VARIABLES, Rails, RailsEndpoint},
    redis_url::{RedisTarget, RedisUrl},
    secret::Secret,
    sections::{Collab, Engine, GapNotice, Http, Limits, Log, LogFormat, Recovery, Redis},
    variable::{VARIABLES, Variable, help_table, markdown_table},
};

use self::reader::{Reader, Reported};

/// Everything the process can be told from outside, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, and whom to let in.
    pub http: Http,
    /// How many may be served at a time.
    pub limits: Limits,
    /// Where Rails publishes.
    pub redis: Redis,
    /// Heartbeats and the bound on slow browsers.
    pub engine: Engine,
    /// What a returning browser can still get.
    pub recovery: Recovery,
    /// How Rails is asked who may edit a document.
    pub rails: Rails,
    /// Who may have it asked, and how often.
    pub collab: Collab,
    /// Workers that own sockets. `SHARDS`, default one per core the process may use; 1 to 64.
    pub shards: usize,
    /// What is logged, and in which form.
    pub log: Log,
    /// Messages come from inside the process; [`Config::redis`] is not to be dialled. Set by [`Config::for_demo`].
    pub demo: bool,
    /// Remarks for the start block: settings that were understood, though not as they were written.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads the settings of the live server.
    pub fn from_env(environment: &Environment) -> Result<Self, Mistakes> {
        Self::read(environment, false)
    }

    /// Reads the settings of the demo: `port` goes before `PORT`, `REDIS_URL` is not read, `BIND` defaults to
    /// 127.0.0.1, and the origin to `http://localhost:<port>`.
    pub fn for_demo(port: Option<u16>, environment: &Environment) -> Result<Self, Mistakes> {
        let mut environment = environment.without(variable::REDIS_URL.name);
        if let Some(port) = port {
            environment = environment.with(variable::PORT.name, port.to_string());
        }
        Self::read(&environment, true)
    }

    /// Reads no more than where the server listens, for those who only want to reach it.
    pub fn http_only(environment: &Environment) -> Result<Http, Mistakes> {
        let mut reader = Reader::new(environment);
        Http::read(&mut reader, false).map_err(|Reported| Mistakes(reader.mistakes))
    }

    fn read(environment: &Environment, demo: bool) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(environment);
        match Self::read_sections(&mut reader, environment, demo) {
            Ok(config) if reader.mistakes.is_empty() => Ok(Self { notes: reader.notes, ..config }),
            _ => Err(Mistakes(reader.mistakes)),
        }
    }

    /// Reads every section before it looks at the first failure: that is what brings all mistakes together.
    fn read_sections(reader: &mut Reader<'_>, environment: &Environment, demo: bool) -> Result<Self, Reported> {
        let http = Http::read(reader, demo);
        let limits = Limits::read(reader);
        let redis = Redis::read(reader);
        let engine = Engine::read(reader);
        let recovery = Recovery::read(reader);
        let rails = Rails::read(reader);
        let collab = Collab::read(reader);
        let shards = sections::shards(reader, environment.cores());
        let log = Log::read(reader);
        Ok(Self {
            http: http?,
            limits: limits?,
            redis: redis?,
            engine: engine?,
            recovery: recovery?,
            rails: rails?,
            collab: collab?,
            shards: shards?,
            log: log?,
            demo,
            notes: Vec::new(),
        })
    }
}
