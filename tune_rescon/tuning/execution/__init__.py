"""Ray and Ray Tune: started, watched, given trials, ended."""
