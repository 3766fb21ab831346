// The version of the build.
#pragma once

/// The git commit of the source tree, with -dirty if it has changes; "unknown" outside a git checkout.
const char* build_commit();
