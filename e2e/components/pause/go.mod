module lithe.dev/e2e/components/pause

go 1.26.0
