//! What is printed of a run, and of all.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use crate::{
    model::{Coverage, Finding, Noted, Publication, Verdict},
    plan::Plan,
    publisher::Publisher,
};

pub(crate) struct Report {
    seed: u64,
    nodes: usize,
    clients: usize,
    faults: BTreeMap<&'static str, usize>,
    publications: Vec<Publication>,
    coverage: Coverage,
    verdicts: Vec<Verdict>,
    broken: Vec<Finding>,
    transcripts: Vec<Vec<Noted>>,
    /// Of each node.
    pub(crate) logs: Vec<Vec<String>>,
}

impl Report {
    pub(crate) fn new(
        plan: &Plan,
        publisher: &Publisher,
        coverage: Coverage,
        verdicts: Vec<Verdict>,
        broken: Vec<String>,
        transcripts: Vec<Vec<Noted>>,
    ) -> Self {
        let mut faults = BTreeMap::new();
        for fault in &plan.faults {
            *faults.entry(fault.kind.name()).or_default() += 1;
        }
        Self {
            seed: plan.seed,
            nodes: plan.nodes,
            clients: plan.clients.len(),
            faults,
            publications: publisher.publications.clone(),
            coverage,
            verdicts,
            broken: broken.into_iter().map(Finding::Broken).collect(),
            transcripts,
            logs: Vec::new(),
        }
    }

    fn findings(&self) -> usize {
        self.broken.len() + self.verdicts.iter().map(|verdict| verdict.findings.len()).sum::<usize>()
    }

    pub(crate) fn has_findings(&self) -> bool {
        self.findings() > 0
    }

    fn sum(&self, of: impl Fn(&Verdict) -> usize) -> usize {
        self.verdicts.iter().map(of).sum()
    }

    /// All that helps to understand the findings, and if asked for, the false alarms.
    pub(crate) fn evidence(&self, plan: &Plan, alarms: bool) -> String {
        let mut text = String::new();
        for fault in &plan.faults {
            let _ = writeln!(text, "  {:?} {:?}", fault.at, fault.kind);
        }
        for outage in &self.coverage.outages {
            let _ = writeln!(text, "  {outage:?}");
        }
        for finding in &self.broken {
            let _ = writeln!(text, "  {finding}");
        }
        for (node, log) in self.logs.iter().enumerate() {
            for line in log {
                let _ = writeln!(text, "  node {node}: {line}");
            }
        }
        let clients = self.verdicts.iter().zip(&self.transcripts).enumerate();
        let concerned = |verdict: &Verdict| !verdict.findings.is_empty() || alarms && !verdict.alarms.is_empty();
        for (client, (verdict, transcript)) in clients.filter(|(_, (verdict, _))| concerned(verdict)) {
            let _ = writeln!(text, "  client {client}, {:?}:", plan.clients[client]);
            for finding in &verdict.findings {
                let _ = writeln!(text, "    finding: {finding}");
                if let Finding::Lost { missing, .. } = finding {
                    let _ = writeln!(text, "    {:?}", self.publications[*missing]);
                }
            }
            for alarm in &verdict.alarms {
                let _ = writeln!(text, "    {alarm:?}");
            }
            for noted in transcript {
                let _ = writeln!(text, "    {:?} {:?}", noted.at, noted.entry);
            }
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [recovered, renewed] = [0, 1].map(|index| self.sum(|verdict| verdict.returns[index]));
        write!(f, "seed {}: {} nodes, {} clients, faults {:?}", self.seed, self.nodes, self.clients, self.faults)?;
        write!(f, ", messages {}, deliveries {}", self.publications.len(), self.sum(|verdict| verdict.deliveries))?;
        write!(f, ", duplicates {}", self.sum(|verdict| verdict.duplicates))?;
        write!(f, ", returns recovered {recovered}, not {renewed}")?;
        write!(
            f,
            ", notices {}, told losses {}",
            self.sum(|verdict| verdict.notices),
            self.sum(|verdict| verdict.told)
        )?;
        write!(f, ", alarms {:?}", causes(&self.verdicts))?;
        write!(f, " (excused {}), findings {}", self.sum(|verdict| verdict.excused), self.findings())
    }
}

/// False alarms by what came before them.
fn causes(verdicts: &[Verdict]) -> BTreeMap<&'static str, usize> {
    let mut causes = BTreeMap::new();
    for alarm in verdicts.iter().flat_map(|verdict| &verdict.alarms) {
        *causes.entry(alarm.cause).or_default() += 1;
    }
    causes
}

/// Of all runs.
#[derive(Default)]
pub(crate) struct Totals {
    seeds: usize,
    pub(crate) faults: usize,
    messages: usize,
    deliveries: usize,
    duplicates: usize,
    returns: [usize; 2],
    notices: usize,
    told: usize,
    excused: usize,
    pub(crate) alarms: usize,
    causes: BTreeMap<&'static str, usize>,
    pub(crate) findings: usize,
    /// Seeds with findings.
    found: Vec<u64>,
}

impl Totals {
    pub(crate) fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.faults += report.faults.values().sum::<usize>();
        self.messages += report.publications.len();
        self.deliveries += report.sum(|verdict| verdict.deliveries);
        self.duplicates += report.sum(|verdict| verdict.duplicates);
        for index in [0, 1] {
            self.returns[index] += report.sum(|verdict| verdict.returns[index]);
        }
        self.notices += report.sum(|verdict| verdict.notices);
        self.told += report.sum(|verdict| verdict.told);
        self.excused += report.sum(|verdict| verdict.excused);
        self.alarms += report.sum(|verdict| verdict.alarms.len());
        for (cause, number) in causes(&report.verdicts) {
            *self.causes.entry(cause).or_default() += number;
        }
        self.findings += report.findings();
        if report.has_findings() {
            self.found.push(report.seed);
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [recovered, renewed] = self.returns;
        write!(f, "{} seeds: faults {}, messages {}", self.seeds, self.faults, self.messages)?;
        write!(f, ", deliveries {}, duplicates {}", self.deliveries, self.duplicates)?;
        write!(
            f,
            ", returns recovered {recovered}, not {renewed}, notices {}, told losses {}",
            self.notices, self.told
        )?;
        write!(f, ", alarms {} {:?} (excused {})", self.alarms, self.causes, self.excused)?;
        write!(f, ", findings {} in seeds {:?}", self.findings, self.found)
    }
}
