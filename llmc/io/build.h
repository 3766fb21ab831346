// What was built.
#pragma once

/// The commit of the source tree, with -dirty where it was changed; "unknown" outside of a git checkout.
const char* build_commit();
