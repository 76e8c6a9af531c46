//! From a batch to the columns of `wit/placement`.
//!
//! Always: what is sent satisfies the contract's bounds; a request that nothing here can satisfy is answered by the host
//! and spoils no other. Never: a judgement of what is possible but unwise.

use super::{
    columns::NONE,
    fleet::{Batch, Relation, Request, Scope, Term},
    mirror::{MAX_SYMBOLS, Mirror},
};
use crate::{
    bindings::placement::exports::dwcp::placement::decisions as wit,
    fault::{Fault, FaultKind},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A batch in columns, and which request each of its rows is.
pub(crate) struct Rows {
    pub(crate) batch: wit::Batch,
    /// Position in the caller's batch for each row.
    pub(crate) of: Vec<usize>,
    /// Requests that the host answers itself, and why nothing can satisfy them.
    pub(crate) impossible: BTreeMap<usize, String>,
}

/// Turns a batch into columns. A request that names a host or region that is not there is answered by the host:
/// one impossible request must not spoil the others.
pub(crate) fn batch(mirror: &Mirror, batch: &Batch) -> Result<Rows, Fault> {
    check_batch(batch)?;
    let mut impossible = BTreeMap::new();
    let mut of = Vec::new();
    for (position, request) in batch.requests.iter().enumerate() {
        match impossibility(mirror, request) {
            Some(reason) => {
                impossible.insert(position, reason);
            }
            None => of.push(position),
        }
    }
    let mut local = LocalSymbols {
        mirror,
        names: Vec::new(),
        rows: HashMap::new(),
    };
    let requests: Vec<&Request> = of.iter().map(|at| &batch.requests[*at]).collect();
    let mut terms = Vec::new();
    let mut memberships = Vec::new();
    let mut gpu_model = Vec::new();
    for (row, request) in requests.iter().enumerate() {
        let row = row as u32;
        let model = request.gpu_model.as_ref();
        gpu_model.push(model.map_or(NONE, |name| local.row(name)));
        for term in &request.terms {
            terms.extend(local.term(row, term));
        }
        memberships.extend(request.groups.iter().map(|g| wit::Membership {
            request: row,
            group: local.row(g),
        }));
    }
    let symbols = local.names;
    if mirror.symbols.len() + symbols.len() > MAX_SYMBOLS {
        return Err(input("The batch names too many labels, zones and groups."));
    }
    let columns = wit::Batch {
        gpu_model,
        symbols,
        terms,
        memberships,
        alternatives: batch.alternatives,
        explain: batch.explain,
        ..numbers(mirror, &requests)
    };
    Ok(Rows {
        batch: columns,
        of,
        impossible,
    })
}

/// The columns that are plain numbers and names; the others are empty.
fn numbers(mirror: &Mirror, requests: &[&Request]) -> wit::Batch {
    let column = |f: fn(&Request) -> u32| -> Vec<u32> { requests.iter().map(|r| f(r)).collect() };
    let near = |request: &&Request| {
        let region = request.near.as_ref();
        region.map_or(NONE, |n| mirror.region_rows.get(n).copied().unwrap_or(NONE))
    };
    let cost_limit = |request: &&Request| request.cost_limit_micros.unwrap_or(u64::MAX);
    wit::Batch {
        ids: requests.iter().map(|r| r.id.clone()).collect(),
        cpu_millis: column(|r| r.cpu_millis),
        memory_mib: column(|r| r.memory_mib),
        storage_gib: column(|r| r.storage_gib),
        bandwidth_mbps: column(|r| r.bandwidth_mbps),
        gpus: column(|r| r.gpus),
        gpu_model: Vec::new(),
        near: requests.iter().map(near).collect(),
        max_latency_us: column(|r| r.max_latency_us.unwrap_or(NONE)),
        cost_limit_micros: requests.iter().map(cost_limit).collect(),
        min_health: requests.iter().map(|r| r.min_health).collect(),
        symbols: Vec::new(),
        terms: Vec::new(),
        memberships: Vec::new(),
        alternatives: 0,
        explain: false,
    }
}

struct LocalSymbols<'a> {
    mirror: &'a Mirror,
    names: Vec<String>,
    rows: HashMap<String, u32>,
}

impl LocalSymbols<'_> {
    fn row(&mut self, name: &str) -> u32 {
        if let Some(row) = self
            .mirror
            .symbol_rows
            .get(name)
            .or_else(|| self.rows.get(name))
        {
            return *row;
        }
        let row = (self.mirror.symbols.len() + self.names.len()) as u32;
        self.names.push(name.to_owned());
        self.rows.insert(name.to_owned(), row);
        row
    }

    /// The term, unless it is about a host or region that is not there: such a wish changes nothing, and of
    /// conditions [`impossibility`] has made sure that others are left.
    fn term(&mut self, request: u32, term: &Term) -> Option<wit::Term> {
        let subject = match term.scope {
            Scope::Host => *self.mirror.by_id.get(&term.subject)?,
            Scope::Region => *self.mirror.region_rows.get(&term.subject)?,
            _ => self.row(&term.subject),
        };
        let relation = match term.relation {
            Relation::Requires => wit::Relation::Requires,
            Relation::Forbids => wit::Relation::Forbids,
            Relation::Prefers => wit::Relation::Prefers,
            Relation::Avoids => wit::Relation::Avoids,
        };
        let scope = match term.scope {
            Scope::Host => wit::Scope::Host,
            Scope::Zone => wit::Scope::Zone,
            Scope::Region => wit::Scope::Region,
            Scope::Label => wit::Scope::Label,
            Scope::GroupOnHost => wit::Scope::GroupOnHost,
            Scope::GroupInZone => wit::Scope::GroupInZone,
            Scope::GroupInRegion => wit::Scope::GroupInRegion,
        };
        Some(wit::Term {
            request,
            relation,
            scope,
            subject,
            weight: term.weight,
        })
    }
}

/// Why no host of this fleet can satisfy the request, if it names something that is not there.
fn impossibility(mirror: &Mirror, request: &Request) -> Option<String> {
    if let Some(near) = request
        .near
        .as_ref()
        .filter(|n| !mirror.region_rows.contains_key(*n))
    {
        return Some(format!("there is no region {}", cut(near)));
    }
    for (scope, what) in [(Scope::Host, "host"), (Scope::Region, "region")] {
        let there = |term: &&Term| match scope {
            Scope::Host => mirror.by_id.contains_key(&term.subject),
            _ => mirror.region_rows.contains_key(&term.subject),
        };
        let mut required = request
            .terms
            .iter()
            .filter(|t| t.scope == scope && t.relation == Relation::Requires)
            .peekable();
        if let Some(first) = required
            .peek()
            .copied()
            .filter(|_| !required.any(|t| there(&t)))
        {
            return Some(format!("there is no {what} {}", cut(&first.subject)));
        }
    }
    None
}

pub(super) fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

fn input(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Input, message)
}

fn check_batch(batch: &Batch) -> Result<(), Fault> {
    if !(1..=1_024).contains(&batch.requests.len()) {
        return Err(input(format!(
            "A batch has 1 to 1,024 requests, this one {}.",
            batch.requests.len()
        )));
    }
    if batch.alternatives > 8 {
        return Err(input("At most 8 alternatives may be asked for."));
    }
    let mut ids = HashSet::new();
    for request in &batch.requests {
        let id = cut(&request.id);
        if request.id.is_empty() || request.id.len() > 256 || !ids.insert(&request.id) {
            return Err(input(format!(
                "Request ids are unique and have 1 to 256 bytes; '{id}' is not."
            )));
        }
        if request.terms.len() > 64 || request.groups.len() > 16 {
            return Err(input(format!(
                "Request {id} has more than 64 terms or 16 groups."
            )));
        }
        if request.min_health > 100 {
            return Err(input(format!(
                "Request {id} wants health {}, it must be 0 to 100.",
                request.min_health
            )));
        }
        for term in &request.terms {
            let soft = matches!(term.relation, Relation::Prefers | Relation::Avoids);
            if term.weight > 100 || soft != (term.weight > 0) {
                return Err(input(format!(
                    "Request {id}: soft terms have a weight of 1 to 100, hard ones of 0."
                )));
            }
        }
        let names = request
            .terms
            .iter()
            .map(|t| &t.subject)
            .chain(&request.groups)
            .chain(&request.gpu_model);
        if names
            .into_iter()
            .any(|name| name.is_empty() || name.len() > 256)
        {
            return Err(input(format!("Request {id}: names have 1 to 256 bytes.")));
        }
    }
    Ok(())
}
