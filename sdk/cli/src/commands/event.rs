//! `dwcp event`: what happened.

use clap::{Args, Subcommand};
use dwcp_sdk::types::Event;

use crate::context::Context;
use crate::units;

/// Events fetched at a time.
const BATCH: usize = 1_000;

/// Commands about events.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// List the newest events, oldest first
    #[command(after_help = "Examples:
  dwcp event list
  dwcp event list --follow -o json | jq .message")]
    List(ListArgs),
}

/// Which events.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Go on as more happens; with -o json one event a line
    #[arg(short, long)]
    follow: bool,
    /// Only those after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// At most this many of the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Does it.
pub async fn run(context: &Context, command: EventCommand) -> anyhow::Result<()> {
    let EventCommand::List(args) = command;
    let (events, last) = newest(context, args.after, args.limit).await?;
    let output = context.output;
    if !args.follow {
        let headings = ["NUMBER", "TIME", "KIND", "OBJECT", "MESSAGE"];
        return output.list(&events, &headings, row);
    }
    for event in &events {
        show(context, event)?;
    }
    let mut follow = context.client.event_follow(last);
    loop {
        show(context, &follow.next().await?)?;
    }
}

/// The newest events after a number, and the number of the last one.
async fn newest(
    context: &Context,
    mut after: u64,
    limit: usize,
) -> anyhow::Result<(Vec<Event>, u64)> {
    let mut newest = std::collections::VecDeque::new();
    loop {
        let batch = context.client.event_list(after, BATCH).await?;
        let Some(last) = batch.last() else {
            return Ok((newest.into(), after));
        };
        after = last.sequence;
        let ended = batch.len() < BATCH;
        newest.extend(batch);
        let surplus = newest.len().saturating_sub(limit);
        newest.drain(..surplus);
        if ended {
            return Ok((newest.into(), after));
        }
    }
}

fn show(context: &Context, event: &Event) -> anyhow::Result<()> {
    let output = context.output;
    if output.json() {
        return output.line(event);
    }
    let text = format!(
        "{}  {:<20}  {}  {}\n",
        units::moment(event.time_ms),
        event.kind,
        event.object,
        event.message
    );
    Ok(output.text(&text)?)
}

fn row(event: &Event) -> Vec<String> {
    vec![
        event.sequence.to_string(),
        units::moment(event.time_ms),
        event.kind.clone(),
        event.object.clone(),
        event.message.clone(),
    ]
}
