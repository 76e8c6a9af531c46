//! From the mirror and a batch to the columns of `wit/placement`, and from the plugin's answer back to names.
//!
//! Always: what is sent satisfies the contract's bounds; nothing of an answer is believed unchecked: an index out of
//! range, a missing decision or a number that is none is a fault. Never: a judgement of the choice itself; hard
//! constraints are checked again where the host reserves.

use super::{
    fleet::{Answer, Batch, Candidate, Decision, Factor, Host, Rejection, Request, Scope, Term},
    mirror::{Before, MAX_SYMBOLS, Mirror},
};
use crate::{
    bindings::placement::exports::dwcp::placement::decisions as wit,
    fault::{Fault, FaultKind},
};
use std::collections::{BTreeMap, HashMap, HashSet};

const NONE: u32 = u32::MAX;
/// Rows of the members table that one call may carry.
const MEMBER_ROWS: usize = 65_536;

fn regions(mirror: &Mirror) -> wit::Regions {
    let of = &mirror.regions;
    wit::Regions {
        names: of.iter().map(|r| r.name.clone()).collect(),
        priority: of.iter().map(|r| r.priority).collect(),
        latency_us: of
            .iter()
            .flat_map(|from| {
                of.iter().map(|to| match from.latency_us.get(&to.name) {
                    Some(us) => *us,
                    None if from.name == to.name => 0,
                    None => NONE,
                })
            })
            .collect(),
    }
}

fn hosts<'a>(mirror: &Mirror, of: impl Iterator<Item = &'a Host> + Clone) -> wit::Hosts {
    let symbol = |name: &Option<String>| {
        name.as_ref()
            .map_or(NONE, |n| mirror.symbol_rows.get(n).copied().unwrap_or(NONE))
    };
    let mut label_starts = vec![0];
    let mut labels = Vec::new();
    for host in of.clone() {
        let start = labels.len();
        labels.extend(
            host.labels
                .iter()
                .filter_map(|l| mirror.symbol_rows.get(l).copied()),
        );
        labels[start..].sort_unstable();
        label_starts.push(labels.len() as u32);
    }
    wit::Hosts {
        ids: of.clone().map(|h| h.id.clone()).collect(),
        region: of
            .clone()
            .map(|h| mirror.region_rows.get(&h.region).copied().unwrap_or(0))
            .collect(),
        zone: of.clone().map(|h| symbol(&h.zone)).collect(),
        accepting: of.clone().map(|h| u8::from(h.accepting)).collect(),
        health: of.clone().map(|h| h.health).collect(),
        latency_us: of.clone().map(|h| h.latency_us.unwrap_or(NONE)).collect(),
        cpu_price_micros: of.clone().map(|h| h.cpu_price_micros).collect(),
        memory_price_micros: of.clone().map(|h| h.memory_price_micros).collect(),
        cpu_total_millis: of.clone().map(|h| h.cpu_total_millis).collect(),
        memory_total_mib: of.clone().map(|h| h.memory_total_mib).collect(),
        storage_total_gib: of.clone().map(|h| h.storage_total_gib).collect(),
        gpu_model: of.clone().map(|h| symbol(&h.gpu_model)).collect(),
        label_starts,
        labels,
    }
}

fn free<'a>(of: impl Iterator<Item = &'a Host> + Clone) -> wit::Free {
    wit::Free {
        cpu_millis: of.clone().map(|h| h.free.cpu_millis).collect(),
        memory_mib: of.clone().map(|h| h.free.memory_mib).collect(),
        storage_gib: of.clone().map(|h| h.free.storage_gib).collect(),
        gpus: of.clone().map(|h| h.free.gpus).collect(),
        bandwidth_mbps: of.clone().map(|h| h.free.bandwidth_mbps).collect(),
    }
}

/// Rows `(slot, group symbol, count)` as tables of at most [`MEMBER_ROWS`]; at least one table.
fn members(rows: &[(u32, u32, u32)]) -> Vec<wit::Members> {
    let table = |rows: &[(u32, u32, u32)]| wit::Members {
        host: rows.iter().map(|r| r.0).collect(),
        group: rows.iter().map(|r| r.1).collect(),
        count: rows.iter().map(|r| r.2).collect(),
    };
    if rows.is_empty() {
        vec![table(&[])]
    } else {
        rows.chunks(MEMBER_ROWS).map(table).collect()
    }
}

fn nothing(mirror: &Mirror, members: wit::Members) -> wit::Changes {
    wit::Changes {
        symbols: Vec::new(),
        regions: None,
        host_slots: Vec::new(),
        hosts: hosts(mirror, [].iter()),
        free_slots: Vec::new(),
        free: free([].iter()),
        members,
    }
}

/// The whole fleet; members that do not fit follow as changes.
pub(crate) fn fleet(mirror: &Mirror) -> (wit::Fleet, Vec<wit::Changes>) {
    let mut rows = Vec::new();
    for (slot, host) in mirror.slots.iter().enumerate() {
        for (group, count) in host.members.iter().filter(|(_, count)| **count > 0) {
            if let Some(symbol) = mirror.symbol_rows.get(group) {
                rows.push((slot as u32, *symbol, *count));
            }
        }
    }
    let mut tables = members(&rows).into_iter();
    let first = tables.next().unwrap_or_else(|| wit::Members {
        host: vec![],
        group: vec![],
        count: vec![],
    });
    let fleet = wit::Fleet {
        symbols: mirror.symbols.clone(),
        regions: regions(mirror),
        hosts: hosts(mirror, mirror.slots.iter()),
        free: free(mirror.slots.iter()),
        members: first,
    };
    (
        fleet,
        tables.map(|members| nothing(mirror, members)).collect(),
    )
}

/// What is pending, as changes to be applied in order.
pub(crate) fn changes(mirror: &Mirror) -> Vec<wit::Changes> {
    let pending = &mirror.pending;
    let at = |slot: &u32| &mirror.slots[*slot as usize];
    let changed_free = |(slot, before): &(&u32, &Option<Before>)| {
        let host = at(slot);
        before
            .as_ref()
            .is_none_or(|b| b.id != host.id || b.free != host.free)
    };
    let free_slots: Vec<u32> = pending
        .before
        .iter()
        .filter(changed_free)
        .map(|(slot, _)| *slot)
        .collect();
    let rows: Vec<(u32, u32, u32)> = pending
        .before
        .iter()
        .flat_map(|(slot, before)| changed_members(*slot, before.as_ref(), at(slot)))
        .filter_map(|(slot, group, count)| Some((slot, *mirror.symbol_rows.get(group)?, count)))
        .collect();
    let mut tables = members(&rows).into_iter();
    let first = tables.next().unwrap_or_else(|| wit::Members {
        host: vec![],
        group: vec![],
        count: vec![],
    });
    let head = wit::Changes {
        symbols: mirror.symbols[pending.symbols_told.min(mirror.symbols.len())..].to_vec(),
        regions: pending.regions.then(|| regions(mirror)),
        host_slots: pending.hosts.iter().copied().collect(),
        hosts: hosts(mirror, pending.hosts.iter().map(at)),
        free: free(free_slots.iter().map(at)),
        free_slots,
        members: first,
    };
    std::iter::once(head)
        .chain(tables.map(|members| nothing(mirror, members)))
        .collect()
}

/// Counts that differ from what the plugin knows of this slot; a plugin forgets them by itself when the id changes.
fn changed_members<'a>(
    slot: u32,
    before: Option<&'a Before>,
    now: &'a Host,
) -> Vec<(u32, &'a str, u32)> {
    let same_host = before.filter(|b| b.id == now.id);
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    if let Some(before) = same_host {
        counts.extend(before.members.keys().map(|group| (group.as_str(), 0)));
    }
    counts.extend(
        now.members
            .iter()
            .map(|(group, count)| (group.as_str(), *count)),
    );
    counts
        .into_iter()
        .filter(|(group, count)| {
            same_host.map_or(*count > 0, |b| {
                b.members.get(*group).copied().unwrap_or(0) != *count
            })
        })
        .map(|(group, count)| (slot, group, count))
        .collect()
}

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
    let mut terms = Vec::new();
    let mut memberships = Vec::new();
    let mut gpu_model = Vec::new();
    for (row, position) in of.iter().enumerate() {
        let request = &batch.requests[*position];
        let row = row as u32;
        gpu_model.push(
            request
                .gpu_model
                .as_ref()
                .map_or(NONE, |name| local.row(name)),
        );
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
    let column = |f: fn(&Request) -> u32| {
        of.iter()
            .map(|p| f(&batch.requests[*p]))
            .collect::<Vec<u32>>()
    };
    let near = of
        .iter()
        .map(|p| {
            batch.requests[*p]
                .near
                .as_ref()
                .map_or(NONE, |n| mirror.region_rows.get(n).copied().unwrap_or(NONE))
        })
        .collect();
    let columns = wit::Batch {
        ids: of.iter().map(|p| batch.requests[*p].id.clone()).collect(),
        cpu_millis: column(|r| r.cpu_millis),
        memory_mib: column(|r| r.memory_mib),
        storage_gib: column(|r| r.storage_gib),
        bandwidth_mbps: column(|r| r.bandwidth_mbps),
        gpus: column(|r| r.gpus),
        gpu_model,
        near,
        max_latency_us: column(|r| r.max_latency_us.unwrap_or(NONE)),
        cost_limit_micros: of
            .iter()
            .map(|p| batch.requests[*p].cost_limit_micros.unwrap_or(u64::MAX))
            .collect(),
        min_health: of.iter().map(|p| batch.requests[*p].min_health).collect(),
        symbols,
        terms,
        memberships,
        alternatives: batch.alternatives,
        explain: batch.explain,
    };
    Ok(Rows {
        batch: columns,
        of,
        impossible,
    })
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
        use super::fleet::Relation;
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
            .filter(|t| t.scope == scope && t.relation == super::fleet::Relation::Requires)
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

fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

fn input(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Input, message)
}

fn check_batch(batch: &Batch) -> Result<(), Fault> {
    use super::fleet::Relation;
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

/// Checks the plugin's answer and gives it names.
pub(crate) fn answer(
    mirror: &Mirror,
    asked: &Batch,
    rows: &Rows,
    from: wit::Answer,
) -> Result<Answer, Fault> {
    let wrong = |what: String| {
        Fault::new(
            FaultKind::Answer,
            format!("The plugin's answer is wrong: {what}."),
        )
    };
    if from.decisions.len() != rows.of.len() {
        return Err(wrong(format!(
            "{} decisions for {} requests",
            from.decisions.len(),
            rows.of.len()
        )));
    }
    let factors: Vec<Factor> = from
        .factors
        .into_iter()
        .map(|f| Factor {
            name: f.name,
            weight: f.weight,
        })
        .collect();
    if factors.len() > 16
        || factors
            .iter()
            .any(|f| f.name.len() > 64 || !(0.0..=1.0).contains(&f.weight))
    {
        return Err(wrong("factors out of bounds".into()));
    }
    let mut decisions: BTreeMap<usize, Decision> = rows
        .impossible
        .iter()
        .map(|(position, reason)| {
            (
                *position,
                nowhere(mirror, &asked.requests[*position], reason),
            )
        })
        .collect();
    for (position, decision) in rows.of.iter().zip(from.decisions) {
        let request = &asked.requests[*position];
        let decision = named(mirror, asked, &factors, request, decision)
            .map_err(|what| wrong(format!("request {}: {what}", cut(&request.id))))?;
        decisions.insert(*position, decision);
    }
    Ok(Answer {
        factors,
        decisions: decisions.into_values().collect(),
    })
}

/// The decision of a request that the plugin was not asked about.
fn nowhere(mirror: &Mirror, request: &Request, reason: &str) -> Decision {
    Decision {
        request: request.id.clone(),
        chosen: None,
        reasons: Vec::new(),
        alternatives: Vec::new(),
        considered: 0,
        rejected: vec![Rejection {
            reason: reason.to_owned(),
            hosts: mirror.by_id.len() as u32,
        }],
    }
}

/// An answer to a batch of which no request was for the plugin.
pub(crate) fn nowhere_for_all(mirror: &Mirror, asked: &Batch, rows: &Rows) -> Answer {
    let decisions = rows
        .impossible
        .iter()
        .map(|(at, reason)| nowhere(mirror, &asked.requests[*at], reason));
    Answer {
        factors: Vec::new(),
        decisions: decisions.collect(),
    }
}

fn named(
    mirror: &Mirror,
    asked: &Batch,
    factors: &[Factor],
    request: &Request,
    from: wit::Decision,
) -> Result<Decision, String> {
    if from.reasons.len() > factors.len() || from.reasons.iter().any(|r| r.len() > 1_024) {
        return Err("reasons out of bounds".into());
    }
    if from.alternatives.len() > usize::from(asked.alternatives) {
        return Err(format!(
            "{} alternatives, {} were asked for",
            from.alternatives.len(),
            asked.alternatives
        ));
    }
    if from.rejected.len() > 16 || from.rejected.iter().any(|r| r.reason.len() > 128) {
        return Err("rejections out of bounds".into());
    }
    let mut seen = HashSet::new();
    let mut candidate = |from: wit::Candidate| -> Result<Candidate, String> {
        let host = mirror
            .slots
            .get(from.host as usize)
            .filter(|host| !host.id.is_empty())
            .ok_or_else(|| format!("there is no host {}", from.host))?;
        if !seen.insert(from.host) {
            return Err(format!("host {} is named twice", from.host));
        }
        let share = -1e-9..=1.0 + 1e-9;
        if from.values.len() != factors.len() || !from.values.iter().all(|v| share.contains(v)) {
            return Err("factor values out of bounds".into());
        }
        if !(-1e-6..=100.0 + 1e-6).contains(&from.score) {
            return Err(format!("a score of {}", from.score));
        }
        Ok(Candidate {
            host: host.id.clone(),
            score: from.score,
            values: from.values,
            cost_micros: from.cost_micros,
            latency_us: Some(from.latency_us).filter(|us| *us != NONE),
        })
    };
    Ok(Decision {
        request: request.id.clone(),
        chosen: from.chosen.map(&mut candidate).transpose()?,
        alternatives: from
            .alternatives
            .into_iter()
            .map(candidate)
            .collect::<Result<_, _>>()?,
        reasons: from.reasons,
        considered: from.considered,
        rejected: from
            .rejected
            .into_iter()
            .map(|r| Rejection {
                reason: r.reason,
                hosts: r.hosts,
            })
            .collect(),
    })
}
