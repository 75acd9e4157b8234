-- The table, seen from outside; and the time by which workers are alive. Nothing is written.

return run(function()
  read_format()
  read_fleet()
  read_workers()
  return { digits(millis), read_whole() }
end, function() end)
