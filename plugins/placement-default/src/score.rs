//! Deciding a batch: filter, score, choose, explain.
//!
//! What always holds: a batch leaves the state as it found it; scores are finite, 0 to 100.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::bindings::exports::dwcp::placement::decisions::{
    Answer, Batch, Candidate, Decision, Factor as NamedFactor, Refusal, Rejection,
};
use crate::request::{self, Request, Wish};
use crate::settings::{Factor, Settings};
use crate::state::{NONE, State};

/// The round trip that is worth half, where a request states no limit of its own.
const HALF_LATENCY_US: f64 = 100_000.0;
const MAX_REJECTIONS: usize = 16;

/// Decides all requests in turn, each upon what the earlier ones took.
pub fn decide(
    settings: &Settings,
    state: &mut State,
    batch: &Batch,
    revision: u64,
) -> Result<Answer, Refusal> {
    if revision != state.revision {
        return Err(Refusal::OtherRevision(state.revision));
    }
    request::check(batch, state)?;
    let mut taken: Vec<(Request, usize)> = Vec::new();
    let (mut terms, mut memberships) = (&batch.terms[..], &batch.memberships[..]);
    let mut decisions = Vec::with_capacity(batch.ids.len());
    for row in 0..batch.ids.len() {
        let own_terms = terms.partition_point(|term| term.request as usize <= row);
        let own_groups = memberships.partition_point(|m| m.request as usize <= row);
        let mut groups: Vec<u32> = memberships[..own_groups].iter().map(|m| m.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let request = Request::read(batch, row, &terms[..own_terms], groups, state);
        (terms, memberships) = (&terms[own_terms..], &memberships[own_groups..]);
        let decision = decide_one(settings, state, &request, batch);
        if let Some(chosen) = &decision.chosen {
            let slot = chosen.host as usize;
            take(state, &request, slot);
            taken.push((request, slot));
        }
        decisions.push(decision);
    }
    for (request, slot) in taken.iter().rev() {
        give_back(state, request, *slot);
    }
    let factors = settings.factors.iter().map(|(factor, weight)| NamedFactor {
        name: factor.name().to_owned(),
        weight: *weight,
    });
    Ok(Answer {
        factors: factors.collect(),
        decisions,
    })
}

fn take(state: &mut State, request: &Request, slot: usize) {
    state.free.cpu_millis[slot] -= request.cpu_millis;
    state.free.memory_mib[slot] -= request.memory_mib;
    state.free.storage_gib[slot] -= request.storage_gib;
    state.free.gpus[slot] -= request.gpus;
    state.free.bandwidth_mbps[slot] -= request.bandwidth_mbps;
    for group in &request.groups {
        let count = state.member_count(*group, slot as u32);
        state.set_member(*group, slot as u32, count.saturating_add(1));
    }
}

fn give_back(state: &mut State, request: &Request, slot: usize) {
    state.free.cpu_millis[slot] += request.cpu_millis;
    state.free.memory_mib[slot] += request.memory_mib;
    state.free.storage_gib[slot] += request.storage_gib;
    state.free.gpus[slot] += request.gpus;
    state.free.bandwidth_mbps[slot] += request.bandwidth_mbps;
    for group in &request.groups {
        let count = state.member_count(*group, slot as u32);
        state.set_member(*group, slot as u32, count.saturating_sub(1));
    }
}

/// A host and its score, before it is written down.
type Scored = (f64, usize);

fn decide_one(settings: &Settings, state: &State, request: &Request, batch: &Batch) -> Decision {
    let places = 1 + usize::from(batch.alternatives);
    let mut best: Vec<Scored> = Vec::with_capacity(places + 1);
    let mut rejected: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut considered = 0;
    for slot in 0..state.hosts.ids.len() {
        if state.hosts.ids[slot].is_empty() {
            continue;
        }
        if let Some(reason) = request.rejects(state, slot) {
            *rejected.entry(reason).or_default() += 1;
            continue;
        }
        considered += 1;
        let scored = (score(settings, state, request, slot), slot);
        let place = best.partition_point(|other| order(state, other, &scored).is_lt());
        if place < places {
            best.insert(place, scored);
            best.truncate(places);
        }
    }
    let mut candidates = best.iter().map(|(score, slot)| Candidate {
        host: *slot as u32,
        score: *score,
        values: values(settings, state, request, *slot).to_vec(),
        cost_micros: request.cost_micros(state, *slot),
        latency_us: request.latency_us(state, *slot),
    });
    let chosen = candidates.next();
    let alternatives = candidates.collect();
    let reasons = match &chosen {
        Some(chosen) if batch.explain => explain(settings, state, request, chosen),
        _ => Vec::new(),
    };
    Decision {
        chosen,
        reasons,
        alternatives,
        considered,
        rejected: rejections(rejected),
    }
}

/// Better first; of equals the smaller id.
fn order(state: &State, a: &Scored, b: &Scored) -> Ordering {
    b.0.total_cmp(&a.0)
        .then_with(|| state.hosts.ids[a.1].cmp(&state.hosts.ids[b.1]))
}

fn rejections(rejected: BTreeMap<&'static str, u32>) -> Vec<Rejection> {
    let mut rejections: Vec<Rejection> = rejected
        .into_iter()
        .map(|(reason, hosts)| Rejection {
            reason: reason.to_owned(),
            hosts,
        })
        .collect();
    // Stable: equal counts stay in the order of their reasons.
    rejections.sort_by_key(|rejection| std::cmp::Reverse(rejection.hosts));
    rejections.truncate(MAX_REJECTIONS);
    rejections
}

fn score(settings: &Settings, state: &State, request: &Request, slot: usize) -> f64 {
    let values = values(settings, state, request, slot);
    let weighted = settings.factors.iter().zip(values);
    100.0
        * weighted
            .map(|((_, weight), value)| weight * value)
            .sum::<f64>()
}

fn values(settings: &Settings, state: &State, request: &Request, slot: usize) -> [f64; 5] {
    settings
        .factors
        .map(|(factor, _)| value(factor, settings, state, request, slot))
}

/// What a factor finds, 0 to 1.
fn value(
    factor: Factor,
    settings: &Settings,
    state: &State,
    request: &Request,
    slot: usize,
) -> f64 {
    match factor {
        Factor::Latency => latency(request.latency_us(state, slot), request.max_latency_us),
        Factor::Cost => {
            let scale = match request.cost_limit_micros {
                u64::MAX => settings.cost_scale_micros,
                limit => limit.max(1),
            };
            let share = request.cost_micros(state, slot) as f64 / scale as f64;
            (1.0 - share).max(0.0)
        }
        Factor::Capacity => {
            let free = free_after(state, request, slot);
            if settings.binpack { 1.0 - free } else { free }
        }
        Factor::Affinity => met_share(&request.wishes, state, slot),
        Factor::Policy => met_share(&request.regional, state, slot) * priority(state, slot),
        Factor::Health => f64::from(state.hosts.health[slot].min(100)) / 100.0,
        Factor::Priority => priority(state, slot),
    }
}

fn latency(latency_us: u32, limit_us: u32) -> f64 {
    if latency_us == NONE {
        return 0.0;
    }
    let latency_us = f64::from(latency_us);
    match limit_us {
        NONE => HALF_LATENCY_US / (HALF_LATENCY_US + latency_us),
        limit => 1.0 - latency_us / f64::from(limit.max(1)),
    }
}

fn priority(state: &State, slot: usize) -> f64 {
    let region = state.hosts.region[slot] as usize;
    f64::from(state.regions.priority[region].min(100)) / 100.0
}

/// Weight of the wishes that are met, of all of them; 1 when there are none.
fn met_share(wishes: &[Wish], state: &State, slot: usize) -> f64 {
    let total: u32 = wishes.iter().map(|wish| wish.weight).sum();
    if total == 0 {
        return 1.0;
    }
    let met = |wish: &&Wish| wish.target.matches(state, slot) == wish.for_it;
    let met: u32 = wishes.iter().filter(met).map(|wish| wish.weight).sum();
    f64::from(met) / f64::from(total)
}

/// What stays free of CPU, memory and storage, as shares of what the host has.
fn free_shares(state: &State, request: &Request, slot: usize) -> [(f64, Option<f64>); 3] {
    let share = |free: u32, taken: u32, total: u32| {
        let left = f64::from(free.saturating_sub(taken));
        (total > 0).then(|| (left / f64::from(total)).min(1.0))
    };
    let (free, hosts) = (&state.free, &state.hosts);
    [
        (
            0.4,
            share(
                free.cpu_millis[slot],
                request.cpu_millis,
                hosts.cpu_total_millis[slot],
            ),
        ),
        (
            0.4,
            share(
                free.memory_mib[slot],
                request.memory_mib,
                hosts.memory_total_mib[slot],
            ),
        ),
        (
            0.2,
            share(
                free.storage_gib[slot],
                request.storage_gib,
                hosts.storage_total_gib[slot],
            ),
        ),
    ]
}

/// Weighted over what the host has at all.
fn free_after(state: &State, request: &Request, slot: usize) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for (weight, share) in free_shares(state, request, slot) {
        if let Some(share) = share {
            sum += weight * share;
            weights += weight;
        }
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

fn explain(
    settings: &Settings,
    state: &State,
    request: &Request,
    chosen: &Candidate,
) -> Vec<String> {
    let slot = chosen.host as usize;
    let sentence = |(index, (factor, _)): (usize, &(Factor, f64))| match factor {
        Factor::Latency => latency_in_words(state, request, chosen.latency_us),
        Factor::Cost => cost_in_words(request, chosen.cost_micros),
        Factor::Capacity => capacity_in_words(state, request, slot),
        Factor::Affinity => match request.wishes.len() {
            0 => "Nothing is wished for or against.".to_owned(),
            count => format!(
                "{} of {count} wishes are met.",
                met_count(&request.wishes, state, slot)
            ),
        },
        Factor::Policy => {
            let priority = region_in_words(state, slot);
            match request.regional.len() {
                0 => priority,
                count => {
                    let met = met_count(&request.regional, state, slot);
                    format!("{priority} {met} of {count} regional wishes are met.")
                }
            }
        }
        Factor::Health => format!("Its health is {:.0} of 100.", 100.0 * chosen.values[index]),
        Factor::Priority => region_in_words(state, slot),
    };
    settings.factors.iter().enumerate().map(sentence).collect()
}

fn met_count(wishes: &[Wish], state: &State, slot: usize) -> usize {
    let met = |wish: &&Wish| wish.target.matches(state, slot) == wish.for_it;
    wishes.iter().filter(met).count()
}

fn region_in_words(state: &State, slot: usize) -> String {
    let region = state.hosts.region[slot] as usize;
    let name = &state.regions.names[region];
    format!(
        "Region {name} has priority {} of 100.",
        state.regions.priority[region]
    )
}

fn latency_in_words(state: &State, request: &Request, latency_us: u32) -> String {
    let from = match request.near {
        NONE => "the asking host".to_owned(),
        region => format!("region {}", state.regions.names[region as usize]),
    };
    if latency_us == NONE {
        return format!("The round trip from {from} is not measured.");
    }
    let latency_ms = f64::from(latency_us) / 1000.0;
    match request.max_latency_us {
        NONE => format!("{latency_ms:.1} ms from {from}."),
        limit => {
            let limit_ms = f64::from(limit) / 1000.0;
            format!("{latency_ms:.1} ms from {from}, at most {limit_ms:.1} ms allowed.")
        }
    }
}

fn cost_in_words(request: &Request, cost_micros: u64) -> String {
    let cost = cost_micros as f64 / 1e6;
    match request.cost_limit_micros {
        u64::MAX => format!("{cost:.4} an hour."),
        limit => format!(
            "{cost:.4} an hour, at most {:.4} allowed.",
            limit as f64 / 1e6
        ),
    }
}

fn capacity_in_words(state: &State, request: &Request, slot: usize) -> String {
    let names = ["CPU", "memory", "storage"];
    let shares = free_shares(state, request, slot).into_iter().zip(names);
    let parts: Vec<String> = shares
        .filter_map(|((_, share), name)| Some(format!("{:.0} % of {name}", 100.0 * share?)))
        .collect();
    format!("With this VM {} stay free.", parts.join(", "))
}
