//! The demonstration's own flow, end to end, on a smaller machine over a faster link, so that the main job cannot break
//! unseen; and that an interrupted one leaves nothing behind.

#![allow(clippy::unwrap_used)]

use clap::Parser;
use dwcp_e2e::demo;

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_happens() {
    let arguments = demo::Arguments::parse_from([
        "demo",
        "--rate-mbit=1000",
        "--rtt-ms=10",
        "--memory-mib=64",
        "--fill-mib=24",
        "--working-set-mib=4",
        "--dirty-pages=500",
    ]);
    let moved = demo::run(arguments).await.unwrap();
    assert!(moved.rounds >= 1);
    // Less than the fill cannot have carried it: half of it is text, a fifth is random.
    assert!(moved.wire_mb > 5.0, "{moved:?}");
    assert!(moved.guest_pause_ms > 0.0, "{moved:?}");
}
